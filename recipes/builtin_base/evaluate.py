"""What came out: the judge on real pictures and on the base's, and a sheet to look at.

`prompts.json` and `reference.json` lie beside the judge, for the benchmark.
"""

import json
from dataclasses import asdict
from pathlib import Path
from random import Random

import numpy as np
import torch

from benchmarks.quality import base, painter
from benchmarks.quality import judge as jury_files
from benchmarks.quality.base import Request

from . import scenes, sheet
from .captions import COLOURS
from .icons import PRETRAINING, Textures
from .models import Scale

REQUESTS = 200
CPU_REQUESTS = 8
"""Of them, on a CPU; `python -m benchmarks.quality` paints them all."""
GUIDANCES = (3.0, 4.5, 6.0)


def reference(textures: Textures, scale: Scale, *, assets: Path, judge: Path, device: str) -> dict:
    """What the judge makes of the requested scenes drawn for real, and of their reconstructions."""
    rng = Random(0)
    rows, requests = [], []
    for i in range(REQUESTS):
        rows.append(rng.choice(textures.rows(PRETRAINING[i % len(PRETRAINING)]).tolist()))
        background = "white" if i % 8 == 0 else rng.choice(list(COLOURS))
        requests.append(
            Request(subject=textures.subjects[rows[-1]], set=textures.sets[rows[-1]], background=background)
        )
    pixels = _drawn(textures, rows, requests, scale)
    jury = jury_files.load(judge)
    model = painter.load(assets, device=device)
    rebuilt = torch.cat([model.rebuilt(part.to(device)).cpu() for part in pixels.split(50)])
    report = {
        "real": base.verdict(jury, pixels, requests),
        "rebuilt": base.verdict(jury, rebuilt, requests),
        "rebuilt_l1": round((rebuilt - pixels).abs().mean().item(), 4),
    }
    (judge.parent / "prompts.json").write_text(json.dumps([asdict(r) for r in requests], indent=0) + "\n")
    (judge.parent / "reference.json").write_text(json.dumps(report, indent=2) + "\n")
    (judge.parent / "out").mkdir(exist_ok=True)
    pairs = torch.stack([pixels[:30], rebuilt[:30]], 1).flatten(0, 1)
    sheet.save(
        judge.parent / "out" / "rebuilt.png", pairs, [w for r in requests[:30] for w in (r.subject, r.set)]
    )
    return report


def samples(*, work: Path, assets: Path, judge: Path, device: str) -> dict:
    """The base's numbers at several guidances; sheets `shown.png` and `asked.png` in the work folder."""
    jury = jury_files.load(judge)
    model = painter.load(assets, device=device)
    requests = [Request(**r) for r in json.loads((judge.parent / "prompts.json").read_text())]
    if device == "cpu":
        requests = requests[:CPU_REQUESTS]
    reports = {}
    for guidance in GUIDANCES:
        report, pixels = base.measure(model, jury, requests, guidance=guidance)
        reports[f"guidance {guidance}"] = report
        if guidance == GUIDANCES[1]:
            sheet.save(work / "asked.png", pixels[:80], [f"{r.subject} {r.set}" for r in requests[:80]])
    words = base.SHOWN[:CPU_REQUESTS] if device == "cpu" else base.SHOWN
    sheet.save(work / "shown.png", model.paint(words, guidance=GUIDANCES[1]), words)
    return reports


def _drawn(textures: Textures, rows: list[int], requests: list[Request], scale: Scale) -> torch.Tensor:
    n = len(rows)
    places = np.tile(np.array([0.5, 0.5, 0.86], dtype=np.float32), (n, 2, 1))
    made = scenes.Scenes(
        rows=np.stack([rows, np.full(n, scenes.EMPTY)], 1),
        places=places,
        backgrounds=np.array([COLOURS[r.background] for r in requests], dtype=np.float32) / 255,
        tints=np.full((n, 3), -1, dtype=np.float32),
        captions=(),
    )
    return scenes.compose(torch.from_numpy(textures.pixels), made, size=scale.picture, chunk=25)
