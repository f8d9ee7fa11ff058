"""Real videos: OpenVid, VidProM, posed and published ones; VBench and VisionReward as judges."""

SOURCES = {
    "lmdb": "lmdb",
    "openvid": "openvid",
    "posed_videos": "posed_videos",
    "vidprom": "vidprom",
}
JUDGES = {"benchmark": "vbench"}
