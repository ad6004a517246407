"""Fit the linear encoder: half-whitened principal components of every patch of the world."""
import itertools
import torch
from data import mask_table
from vidk.bundled.grammar import BACKGROUNDS, COLOURS

def fit(channels=16):
    masks = mask_table().flatten(0, 4).double()      # [cells, P]
    P = masks.size(1)
    cov = torch.zeros(P * 3, P * 3, dtype=torch.float64); mean = torch.zeros(P * 3, dtype=torch.float64); n = 0
    rows = []
    for f, b in itertools.product(COLOURS.values(), BACKGROUNDS.values()):
        f, b = torch.tensor(f).double(), torch.tensor(b).double()
        x = (b + masks[..., None] * (f - b)).flatten(1)
        rows.append(x)
    x = torch.cat(rows)
    mean = x.mean(0)
    _, s, v = torch.linalg.svd(x - mean, full_matrices=False)
    dev = s / len(x) ** 0.5
    v, dev = v[:channels], dev[:channels]
    print("dev", dev)
    scale = dev.rsqrt()
    w = v * scale[:, None]
    z = (x - mean) @ w.T
    g = z.square().mean().rsqrt()
    w = w * g
    z = z * g
    print("latent dev", z.std(0))
    back = torch.linalg.pinv(w)  # [P*3, C]
    err = z @ back.T + mean - x
    print("psnr", -10 * err.square().mean().log10())
    return w.float(), mean.float(), back.float()
if __name__ == "__main__":
    w, m, b = fit()
    torch.save((w, m, b), "/work/train6/codec0.pt")
