"""`python -m benchmarks.quality [base] [lora] [plain]`: the built-in base and adapters on it, judged.

Writes `report.json` and picture sheets into the output folder and prints the report. Without a part
named, all are run: some twenty minutes on two free CPU cores, most of them for painting.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from recipes.builtin_base import sheet

from . import base, judge, lora, painter, plain

HERE = Path(__file__).parent
PARTS = ("base", "lora", "plain")
TRAIN = (
    "--loop.steps 300 --loop.batch_size 4 --adapter.rank 16 --adapter.alpha 16"
    " --optimizer.lr 4e-3 --optimizer.text_lr 1e-3"
)
"""What teaches this base in 300 steps: it is narrow, so its rates are some ten times those of large bases."""


def main() -> None:
    """Runs the parts named on the command line, each adding to the report."""
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "report.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    jury = judge.load(HERE / "judge.safetensors")
    for part in options.parts or PARTS:
        report[part] = globals()[f"_{part}"](options, jury)
        report[part]["machine"] = f"{torch.get_num_threads()} CPU threads, torch {torch.__version__}"
        path.write_text(json.dumps(report, indent=2) + "\n")
        print(json.dumps({part: report[part]}, indent=2), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}")
    parser.add_argument("--assets", type=Path, default=HERE.parents[1] / "sdlora" / "assets" / "builtin")
    parser.add_argument("--output", type=Path, default=HERE / "out")
    parser.add_argument("--prompts", type=int, default=200, help="prompts of the base")
    parser.add_argument(
        "--subjects", type=int, default=100, help="subjects of the style, and prompts of others"
    )
    parser.add_argument("--train", default=TRAIN, help="words for `sdlora train`")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if wrong := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(wrong))}; there are {', '.join(PARTS)}")
    return options


def _base(options: argparse.Namespace, jury: judge.Jury) -> dict:
    model = painter.load(options.assets)
    requests = [base.Request(**r) for r in json.loads((HERE / "prompts.json").read_text())][: options.prompts]
    started = time.monotonic()
    report, pixels = base.measure(model, jury, requests, guidance=lora.GUIDANCE, seed=options.seed, batch=20)
    report["seconds_a_picture"] = round((time.monotonic() - started) / len(requests), 2)
    started = time.monotonic()
    model.paint([base.SHOWN[0]], guidance=lora.GUIDANCE)
    report["seconds_one_picture_alone"] = round(time.monotonic() - started, 2)
    sheet.save(options.output / "asked.png", pixels[:80], [f"{r.subject} {r.set}" for r in requests[:80]])
    sheet.save(options.output / "shown.png", model.paint(base.SHOWN, guidance=lora.GUIDANCE), base.SHOWN)
    return {**report, "reference": json.loads((HERE / "reference.json").read_text())}


def _lora(options: argparse.Namespace, jury: judge.Jury) -> dict:
    from sdlora.loading import load_family

    words = options.train.split()
    trained = {
        name: lora.train(lora.DATASETS / name, options.output, *words) for name in ("ink-style", "character")
    }
    ink, figure = (Path(str(t["file"])) for t in trained.values())
    family = load_family("builtin", device="cpu", dtype=torch.float32)
    bench = lora.Bench.of(family, painter.load(options.assets), jury)
    subjects, asked = lora.style_subjects(jury, options.subjects), lora.meetings(options.subjects * 2 // 5)
    styled, pictures = lora.style(jury, lambda p: bench.paint(p, ink), subjects)
    unstyled, plain_pictures = lora.style(jury, bench.paint, subjects)
    prompts = [m.prompt for m in asked]
    met, alone = bench.paint(prompts, figure), bench.paint(prompts)
    untriggered = [f"an icon of {s.replace('-', ' ')}" for s in subjects[: len(asked)]]
    stacked = [f"an ink icon of zibbo {m.pose}" for m in asked if m.pose]
    mixed = bench.paint(stacked, ink, figure)
    rows = [plain_pictures[:10], pictures[:10], met[:10], mixed[:10]]
    labels = [f"{kind}: {text}" for kind, texts in zip(
        ("base", "ink", "character", "both"), (subjects, subjects, prompts, stacked), strict=True
    ) for text in texts[:10]]  # fmt: skip
    sheet.save(options.output / "adapters.png", torch.cat(rows), labels)
    return {
        "trained": trained,
        "style": {"with": styled, "without": unstyled},
        "character": {
            "with": lora.character(jury, met, asked),
            "without_adapter": lora.character(jury, alone, asked),
            "without_trigger": lora.both(jury, bench.paint(untriggered, figure))["character_top1"],
        },
        "stacked": lora.both(jury, mixed),
    }


def _plain(options: argparse.Namespace, jury: judge.Jury) -> dict:
    """The plain loop at the steps of ours, and at its seconds; run after `lora`."""
    from sdlora.training.run import Run

    ours = json.loads((options.output / "report.json").read_text())["lora"]["trained"]["ink-style"]
    config = Run.open(sorted((options.output / "runs").glob("ink-style-*"))[-1]).config
    subjects = lora.style_subjects(jury, options.subjects)
    out: dict = {}
    for name, seconds in (("equal_steps", float("inf")), ("equal_seconds", float(ours["seconds"]))):
        model = painter.load(options.assets)
        run = plain.PlainRun(
            rank=config.adapter.rank, rate=config.optimizer.lr, batch=config.loop.batch_size,
            steps=config.loop.steps if seconds == float("inf") else 10**6, seconds=seconds,
        )  # fmt: skip
        took = plain.train(model, lora.DATASETS / "ink-style", run)
        paint = lambda prompts, model=model: model.paint(prompts, guidance=lora.GUIDANCE, seed=1000, batch=20)  # noqa: E731
        out[name] = {**took, **lora.style(jury, paint, subjects)[0]}
    return out


if __name__ == "__main__":
    main()
