"""A minimal network with cameras, and walks for it: for tests of PRoPE."""

import numpy as np
import torch
from tiny_networks import TINY, F, shake, tiny_wan

from datamodules.cameras import Stride, inverse, parse_keys, rigid, rotation, trajectory
from lightning_modules.networks import Wan
from lightning_modules.networks.cameras import projective

WALKS = ("wl*3, d*2", "a*2, i*3", "jk, s*4")
LENSES = ((0.6, 0.9, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5), (1.1, 1.4, 0.45, 0.52))
STRIDE = Stride(0.3, 15.0)


def posed_wan() -> Wan:
    """The weights of `tiny_wan`, with cameras and motion whose outputs are not zero."""
    torch.manual_seed(0)
    return shake(Wan(**TINY, cameras=True, motion=True)).eval()


def like_base() -> tuple[Wan, Wan]:
    """A network without cameras, and the same with cameras and the zero output it begins with."""
    base, posed = tiny_wan(), Wan(**TINY, cameras=True, motion=True).eval()
    missing, unexpected = posed.load_state_dict(base.state_dict(), strict=False)
    assert not unexpected and {
        "motion_embedder" if "motion" in name else name.split(".")[3] for name in missing
    } == {"to_prope", "motion_embedder"}
    return base, posed


def walks(origin: np.ndarray | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Poses ``[3, F, 3, 4]`` float64 and intrinsics ``[3, F, 4]``, in a world moved by `origin`."""
    poses = np.stack([trajectory(parse_keys(keys), STRIDE) for keys in WALKS])
    if origin is not None:
        poses = poses @ inverse(origin)
    lenses = torch.tensor(LENSES, dtype=torch.float64)[:, None].expand(-1, F, -1)
    return torch.from_numpy(poses[:, :F, :3]), lenses


def somewhere(distance: float) -> np.ndarray:
    """A rigid change of the world by so many units."""
    return rigid(rotation(70, -20), distance * np.array([0.6, -0.48, 0.64]))


def matrices(origin: np.ndarray | None = None) -> torch.Tensor:
    """Cameras of three walks."""
    return projective(*walks(origin))
