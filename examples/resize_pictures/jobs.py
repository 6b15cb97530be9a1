"""Scales one picture."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image, UnidentifiedImageError

import errand


@errand.job("pictures.resize", process=True)
def resize(job: errand.RunningJob) -> dict[str, int | str]:
    """Writes `source` to `target` so that neither side is longer than `edge`."""
    target = Path(job.payload["target"])
    edge = job.payload["edge"]
    try:
        with Image.open(job.payload["source"]) as picture:
            picture.thumbnail((edge, edge))
            target.parent.mkdir(parents=True, exist_ok=True)
            # Under another name first: nobody sees half a picture, and a second attempt starts afresh.
            draft = target.with_name(f".{job.id}{target.suffix}")
            picture.save(draft)
            os.replace(draft, target)
            return {"target": str(target), "width": picture.width, "height": picture.height}
    except (FileNotFoundError, UnidentifiedImageError) as error:
        raise errand.Permanent(str(error)) from error
