"""Real videos: OpenVid, VidProM and published latents; VBench and VisionReward as judges."""

SOURCES = {"lmdb": "lmdb", "openvid": "openvid", "vidprom": "vidprom"}
JUDGES = {"benchmark": "vbench"}
