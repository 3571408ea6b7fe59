"""What an installation puts on the disk, that it is active, and that it goes away again."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.packaging.conftest import REPOSITORY, FreshEnvironment

SHOW_STATE = "import json, deepeyes_plugins._activation as a; print(json.dumps(a.state))"
WAITING = dict.fromkeys(
    (
        "llamafactory.data.converter",
        "llamafactory.data.loader",
        "llamafactory.data.template",
        "vlmeval.config",
        "vlmeval.smp.file",
    ),
    "waiting",
)


def test_the_wheel_holds_the_packages_the_recipes_and_the_activation(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"deepeyes_plugins", "deepeyes_plugins.pth", "eval_plugins"}
    assert "eval_plugins/vlmevalkit/register.py" in names
    assert {"py.typed", "constraints.txt", "constraints-vllm.txt"} <= {
        name.removeprefix("deepeyes_plugins/") for name in names
    }
    assert "deepeyes_plugins/judge/prompts/equivalence.md" in names
    recipes = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "recipes").rglob("*.*")}
    assert {f"deepeyes_plugins/{path}" for path in recipes} <= names


@pytest.mark.parametrize("form", ["wheel", "editable"])
def test_an_installation_is_active_and_uninstalling_leaves_nothing(
    fresh: FreshEnvironment, wheel: Path, form: str
) -> None:
    before = fresh.files()
    if form == "wheel":
        fresh.pip("install", "--quiet", "--no-deps", wheel)
    else:
        # The build needs hatchling, which is lent for that moment.
        fresh.add_dependencies()
        fresh.pip(
            *("install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"),
            *("--ignore-installed", "--editable", REPOSITORY),
        )
        (fresh.site_packages / "zz_lent.pth").unlink()

    assert json.loads(fresh.run("python", "-c", SHOW_STATE)) == WAITING
    assert (fresh.site_packages / "deepeyes_plugins.pth").is_file()

    fresh.pip("uninstall", "--quiet", "--yes", "deepeyes-plugins")
    assert fresh.files() == before
    assert fresh.run("python", "-c", "print('starts')") == "starts\n"


def test_an_interpreter_starts_silently_when_only_the_pth_is_left(fresh: FreshEnvironment) -> None:
    pth = (REPOSITORY / "deepeyes_plugins.pth").read_text()
    (fresh.site_packages / "deepeyes_plugins.pth").write_text(pth)

    report = "import subprocess, sys; r = subprocess.run([sys.executable, '-c', ''], "
    report += "capture_output=True); print(r.returncode, r.stdout, r.stderr)"
    assert fresh.run("python", "-c", report) == "0 b'' b''\n"


def test_an_interpreter_loads_two_small_modules_more(
    fresh: FreshEnvironment, installed: FreshEnvironment
) -> None:
    show = "import sys; print(*sys.modules)"

    with_us = set(installed.run("python", "-c", show).split())
    without_us = set(fresh.run("python", "-c", show).split())

    assert with_us - without_us == {"deepeyes_plugins", "deepeyes_plugins._activation"}


def test_the_switch_turns_the_activation_off(installed: FreshEnvironment) -> None:
    assert json.loads(installed.run("python", "-c", SHOW_STATE, DEEPEYES_ACTIVATION="0")) == {}


def test_the_recipes_are_found_in_an_installed_wheel(installed: FreshEnvironment) -> None:
    show = "from deepeyes_plugins.cli.paths import recipes_folder; print(recipes_folder())"

    folder = Path(installed.run("python", "-c", show).strip())

    assert folder == installed.site_packages / "deepeyes_plugins" / "recipes"


def test_the_command_runs_from_an_installed_wheel(installed: FreshEnvironment) -> None:
    assert installed.run("deepeyes", "--version").startswith("deepeyes-plugins ")


def test_a_spawned_child_of_a_training_job_finds_the_converter(
    installed: FreshEnvironment, tmp_path: Path
) -> None:
    # torchrun and the workers of `datasets` start interpreters like this one.
    script = tmp_path / "job.py"
    script.write_text(
        "import multiprocessing\n"
        "def look(answers):\n"
        "    from llamafactory.data.converter import DATASET_CONVERTERS\n"
        "    answers.put('deepeyes' in DATASET_CONVERTERS)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    answers = context.Queue()\n"
        "    child = context.Process(target=look, args=(answers,))\n"
        "    child.start()\n"
        "    print(answers.get(timeout=240))\n"
        "    child.join()\n"
    )

    assert installed.run("python", script).splitlines()[-1] == "True"


def test_vlmevalkit_finds_the_model(installed: FreshEnvironment) -> None:
    look = "from vlmeval.config import supported_VLM; print('DeepEyesV2' in supported_VLM)"

    assert installed.run("python", "-c", look).splitlines()[-1] == "True"
