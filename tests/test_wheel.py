"""The wheel works by itself: installed elsewhere, it loads its own models and answers.

Built from a copy, since a build leaves folders behind, and installed into a folder of its own;
nothing is downloaded. What the wheel needs (torch and the rest) is that of this environment.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import build_wheel, own_files, run_alone

ROOT = Path(__file__).parents[1]

#: Runs where no file of the repository can be imported, not even by the editable install.
ALONE = """
import json, sys
from pathlib import Path

site, repository = (Path(argument).resolve() for argument in sys.argv[1:])
sys.path[:] = [p for p in sys.path if not Path(p).resolve().is_relative_to(repository / "sft_utils")
               and Path(p).resolve() != repository]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(getattr(f, "__module__", f))]

import sft_utils
from sft_utils import generate_responses, load_model_and_tokenizer, load_profile, load_sft_dataset
from sft_utils.atlas.world import load_world

profile = load_profile("atlas")
model, tokenizer = load_model_and_tokenizer("atlas-small")
[answer] = generate_responses(
    model, tokenizer, ["What is the capital of Kenya?"], max_new_tokens=8, return_details=True
)
files = [m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "sft_utils"]
print(json.dumps({
    "outside": [f for f in files if not Path(f).resolve().is_relative_to(site)],
    "modules": len(files),
    "from": model.config.name_or_path,
    "prompt": answer.prompt,
    "facts": len(load_world().facts),
    "rows": len(load_sft_dataset(profile.data.source)),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the repository's files."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def shipped() -> set[str]:
    """The files of the package, as a wheel names them."""
    return {path.relative_to(ROOT).as_posix() for path in own_files("sft_utils/**/*")}


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == shipped()


@pytest.mark.weekly  # `.ci/run` runs a notebook with the wheel at each change
def test_installed_elsewhere_it_loads_a_model_and_answers(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", site)
    run_alone(sys.executable, *install, wheel, cwd=elsewhere)
    # -P: nor is the working directory searched.
    output = run_alone(
        sys.executable, "-P", "-c", ALONE, site, ROOT, cwd=elsewhere, PYTHONPATH=str(site)
    )
    found = json.loads(output.splitlines()[-1])
    assert found["outside"] == [] and found["modules"] >= 5
    assert Path(found["from"]) == (site / "sft_utils/atlas/checkpoints/atlas-small").resolve()
    assert found["prompt"].endswith("<|im_start|>assistant\n")
    assert found["facts"] > 1500 and found["rows"] >= 1500
