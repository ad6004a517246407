"""Gates of the training: rollouts of the product's session, read in latent space."""
import argparse, time, sys
import torch
from world import LatentWorld, start_places, STEPS, SIZES, PLACES
from vidk.bundled.grammar import embed_words
from vidk.bundled.noise import PlacedNoise
from vidk.bundled.scenes import GRID
from vidk.models.config import CONFIGS
from vidk.models.seeded import meta_model
from vidk.models.checkpoint import assign
from vidk.rollout import Session, Schedule

def main():
    a = argparse.ArgumentParser()
    a.add_argument("--state", default="/work/train6/run1/state.pt")
    a.add_argument("--codec", default="/work/train6/codec0.pt")
    a.add_argument("--n", type=int, default=48)
    a.add_argument("--blocks", type=int, default=1)
    a.add_argument("--steps", type=int, default=8)
    a.add_argument("--shift", type=float, default=3.0)
    a.add_argument("--frames", type=int, default=9)
    a.add_argument("--weights", default="ema")
    a.add_argument("--gt", type=int, default=0, help="true blocks given")
    a.add_argument("--save", default="")
    a.add_argument("--sampler", default="euler")
    o = a.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(1234)
    weight, mean, back = torch.load(o.codec)
    world = LatentWorld.build(weight, mean)
    s = torch.load(o.state)
    cfg = CONFIGS["bundled"]
    model = meta_model(cfg); assign(model, {k: v.clone() for k, v in s[o.weights].items()}); model.eval()
    g = torch.Generator().manual_seed(99)
    words = torch.stack([torch.randint(k, (o.n,), generator=g) for k in SIZES], 1)
    emb = embed_words(words, cfg.text_len, cfg.text_dim)
    lens = torch.full((o.n,), 4, dtype=torch.int32)
    ses = Session(model, emb, lens, (GRID, GRID), frames=o.frames, sink=3, noise=PlacedNoise(5), schedule=Schedule(o.steps, shift=o.shift, sampler=o.sampler))
    t = time.time()
    given = None
    if o.gt:
        st = start_places(words, g)
        pl = st[:, None] + STEPS[words[:, 2]][:, None] * torch.arange(3 * o.gt)[None, :, None]
        given = world.latents(words[:, None].expand(-1, 3 * o.gt, -1).reshape(-1, 4), pl.reshape(-1, 2)).view(o.n, 3 * o.gt, -1, GRID, GRID)
    out = torch.cat([b.latents for b in ses.generate(3 * o.blocks, initial_latents=given)], 1)
    print(f"rollout {time.time()-t:.1f}s for {o.n}x{o.blocks}")
    if o.save: torch.save((words, out, given), o.save)
    # nearest frame of the world
    shapes, places = torch.arange(SIZES[1]), torch.cartesian_prod(torch.arange(PLACES), torch.arange(PLACES))
    cw = torch.cartesian_prod(*[torch.arange(k) for k in (SIZES[0], SIZES[1], SIZES[3])])
    cw = torch.stack([cw[:, 0], cw[:, 1], cw[:, 0] * 0, cw[:, 2]], 1)
    cand_w = cw[:, None].expand(-1, len(places), -1).reshape(-1, 4)
    cand_p = places[None].expand(len(cw), -1, -1).reshape(-1, 2)
    C = torch.cat([world.latents(w, p).flatten(1) for w, p in zip(cand_w.split(4096), cand_p.split(4096))])
    n2 = C.square().sum(1)
    x = out.flatten(0, 1).flatten(1)
    best, dist = [], []
    for part in x.split(256):
        d = n2[None] - 2 * part @ C.T
        v, i = d.min(1); best.append(i); dist.append(v + part.square().sum(1))
    best, dist = torch.cat(best).view(o.n, -1), torch.cat(dist).view(o.n, -1) / C.size(1)
    fw, fp = cand_w[best], cand_p[best]
    for b in range(o.blocks):
        sl = slice(3 * b, 3 * b + 3)
        ok = lambda c: (fw[:, sl, c] == words[:, None, c]).float().mean().item()
        step = (fp[:, sl].diff(dim=1) + PLACES // 2) % PLACES - PLACES // 2
        want = STEPS[words[:, 2]]
        d = ((step.sum(1) * want).sum(1) >= 2) & ((step.sum(1) * (1 - want.abs())).sum(1).abs() <= 1)
        ex = (step == want[:, None]).all(-1).float().mean()
        if b < 4 or b == o.blocks - 1 or b % 5 == 4:
            print(f"block {b+1:3d} colour {ok(0):.3f} shape {ok(1):.3f} ground {ok(3):.3f} direction {d.float().mean():.3f} exact steps {ex:.3f} residual mse {dist[:, sl].mean():.4f}")
main()
