"""Files of a run as killed programs, full disks and strangers leave them."""

import io
import json
import os
import random

from PIL import Image

from tests.test_report import write_run

DEEP = "[" * 100_000
PAIRS = list(zip("abcdefgh", "bcdefghi", strict=True))
LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in PAIRS)
MERGES = "a: &a {x: 1}\n" + "".join(f"{b}: &{b}\n  <<: [{', '.join([f'*{a}'] * 9)}]\n" for a, b in PAIRS)
NUMBERS = {"steps": 10, "seconds": 5.0, "scores": {"fd_x": {"value": 2.0}}}
ROWS = [{"sampler": "ddim", "nfe": nfe, "fd_x": 9 / nfe} for nfe in (5, 10)]


def picture(kind):
    file = io.BytesIO()
    frames = [Image.new("L", (24, 24), shade) for shade in (0, 90, 200)]
    frames[0].save(file, kind, **({"save_all": True, "append_images": frames[1:]} if kind == "GIF" else {}))
    return file.getvalue()


def write_whole(folder, score, evaluated=False):
    """A run with every file that a run can have, but for one that tells of a failure."""
    write_run(folder, [f"seed={folder.name}"], score)
    (folder / "job.yaml").write_text((folder / "overrides.yaml").read_text())
    (folder / "samples").mkdir()
    (folder / "samples" / "final.png").write_bytes(picture("PNG"))
    (folder / "samples" / "trajectory.gif").write_bytes(picture("GIF"))
    if not evaluated:
        return
    (folder / "evaluation").mkdir()
    told = {"walks": ROWS, "how": {"num_samples": 100}}
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(told) + "\n")


def result(**changed):
    return json.dumps({"val/loss": 0.5} | NUMBERS | changed)


def curve(**changed):
    return json.dumps({"walks": ROWS, "how": {"num_samples": 100}} | changed)


# texts that can be read, and are none of what the file should hold
OTHERS = {
    "overrides.yaml": ["[a, b]\n", "null\n", "overrides: 5\n", "overrides: [1, null]\n", "name: x\n", "a: [\n", DEEP,
                       LAUGHS, MERGES, "d: 2020-99-99\n", "a: !!python/object:os.system {}\n", "overrides: [a=b]"],
    "config.yaml": ["[1]\n", "5\n", "a: *b\n", "a: &a [*a]\n", DEEP, LAUGHS, MERGES, "? [1]\n: 2\n"],
    "metrics.json": ["[]", "5", "null", '{"val/loss": 0.', "{}", DEEP, result(steps="10"), result(seconds=True),
                     result(**{"val/loss": float("nan")}), result(steps=10**400), result(steps=[]),
                     result(seconds=float("inf")), result(how=[]), result(how={"nfe": "3"}),
                     result(likelihood=["exact"]), result(scores=[]), result(scores={"fd_x": 2}),
                     '{"val/loss": ' + "9" * 5000 + "}",
                     result(scores={"fd_x": {"value": "2"}}), result(scores={"fd_x": {"value": 2, "floor": 1}})],
    "metrics.csv": ["step,a\n1,b\n", "a\n1\n", "step,a\n1\n", "step,a\n1,2,3\n", "step,a\nnan,1\n", "step,a\n1,0.",
                    'step,a\n"1\n', "step,a\n" + "9" * 200_000 + ",1\n"],
    "noise_levels.csv": ["time,logsnr\n1,2\n", "time,logsnr,images,loss,error\n0.5,x,8,1,1\n",
                         "time,logsnr,images,loss,error\n0.5,inf,8,1,1\n"],
    "environment.json": ["{}", "5", "[5]", '[{"command": 3}]', "[{}]", DEEP, "[null", "[[[]]]"],
    "evaluation/metrics.json": ["[]", "7", DEEP, curve(walks=5), curve(walks=[]), curve(walks=[{}]), curve(how=None),
                                curve(walks=[{"sampler": 1, "nfe": 5, "fd_x": 1.0}]), curve(how={"num_samples": "9"}),
                                curve(walks=[{"sampler": "a", "nfe": 0, "fd_x": 1.0}]),
                                curve(walks=[{"sampler": "a", "nfe": 5, "fd_x": float("nan")}])],
    "failure.txt": [],
    "job.yaml": ["[]\n", "overrides: {}\n"],
    "samples/final.png": [picture("GIF"), picture("PNG")[:-12], picture("PNG")[:40]],
    "samples/trajectory.gif": [picture("PNG"), picture("GIF")[:-1], picture("GIF")[:-40]],
}  # fmt: skip


def empty(path):
    path.write_bytes(b"")


def zeros(path):
    path.write_bytes(bytes(max(len(path.read_bytes()) if path.exists() else 0, 64)))


def noise(path):
    path.write_bytes(random.Random(path.name).randbytes(500))


def not_utf8(path):
    path.write_bytes(b"caf\xe9: \xff\n")


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**30)


def no_file(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def circle(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def nowhere(path):
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")


def device(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def forbidden(path):
    path.chmod(0)


ANY = [empty, zeros, noise, not_utf8, sparse, no_file, pipe, circle, nowhere, device]


def holds(content):
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def damages(name):
    """Each does its damage to the file of a path."""
    own = [] if os.geteuid() == 0 or name == "failure.txt" else [forbidden]
    return [*ANY, *own, *map(holds, OTHERS[name])]
