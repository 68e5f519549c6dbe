"""template_pattern: services equal their exemplar, keep its contract, and survive an update."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import sklearn.datasets
import yaml
from sklearn.model_selection import train_test_split

from chapter4_serving_patterns.template_pattern import contract
from chapter4_serving_patterns.template_pattern.builder import BuilderError, read, render
from chapter4_serving_patterns.template_pattern.measure.parameters import WRONG, text
from tools.measure.results import load as load_results
from tools.measure.servers import run_uvicorn

ROOT = Path(__file__).resolve().parents[2]
PATTERN = ROOT / "chapter4_serving_patterns/template_pattern"
DATASETS = yaml.safe_load((PATTERN / "template/copier.yml").read_text())["datasets"]["default"]
LARGEST_BODY_BYTES = 131_072
# As far as the limits of the parameters allow.
LONGEST = {
    "name": "n" * 40,
    "tagline": f"T{'t' * 92}.",
    "port": "65535",
    "model": "m" * 40,
}


def build(*arguments: str | Path, cwd: Path = PATTERN) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "builder", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(PATTERN)},
        capture_output=True,
        text=True,
        check=False,
    )


def written(folder: Path, content: str, name: str = "spare.yml") -> Path:
    path = folder / name
    path.write_text(content, "utf-8")
    return path


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_wrong_parameter_is_refused_with_its_reason(tmp_path: Path, content: str) -> None:
    written(tmp_path, text(name="other", port="8000"), "other.yml")
    with pytest.raises(BuilderError) as refused:
        read(written(tmp_path, content))
    for line in str(refused.value).splitlines():
        assert line.startswith(f"{tmp_path}/spare.yml: ")
    # The control: without what is wrong, the file is read.
    assert read(written(tmp_path, text())).name == "spare"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("name: spare\nname: [\n", "not YAML: while parsing"),
        ("- name\n", "write a line `name: value` for each parameter"),
        ("\xff".encode("latin-1"), "cannot be read: 'utf-8' codec"),
        (text(name="''"), "name: String should match pattern"),
        (text(name="n" * 41), "name: String should have at most 40 characters"),
        (text(name="spare_"), "name: String should match pattern"),
        (text(name="iris\u0131"), "name: String should match pattern"),
        (text(tagline='"Two\\nlines."'), "tagline: String should match pattern"),
        (text(tagline="'It says \"no\".'"), "tagline: String should match pattern"),
        (text(tagline=f"T{'t' * 94}."), "tagline: String should have at most 94 characters"),
        (text(port="80"), "port: Input should be greater than or equal to 1024"),
        (text(port="true"), "port: Input should be a valid integer"),
        (text(port="8009.5"), "port: Input should be a valid integer"),
        (text(name="other"), "name: other.yml has other, too"),
        (text(dataset="[iris]"), "dataset: Input should be"),
        (f"name: &a {'x' * 100_000}\n", "name: String should have at most 40"),
    ],
)
def test_other_bad_files_are_refused_in_lines(
    tmp_path: Path, content: str | bytes, reason: str
) -> None:
    written(tmp_path, text(name="other", port="8000"), "other.yml")
    # What is wrong beside a file is no reason to refuse it.
    written(tmp_path, "- nothing", "list.yml")
    written(tmp_path, "[", "broken.yml")
    path = tmp_path / "spare.yml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BuilderError) as refused:
        read(path)
    assert f"{path}: {reason}" in str(refused.value)
    assert len(str(refused.value)) < 2_000


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.yml"):
        with pytest.raises(BuilderError, match="cannot be read"):
            read(path)


def test_nothing_is_written_unless_all_files_are_right(tmp_path: Path) -> None:
    right = written(tmp_path, text(), "right.yml")
    wrong = written(tmp_path, "", "wrong.yml")
    refused = build(right, wrong, "--output", tmp_path / "out")
    assert refused.returncode == 1
    assert refused.stderr == f"error: {wrong}: write a line `name: value` for each parameter\n"
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    path = written(tmp_path, text())
    (tmp_path / "spare").mkdir()
    mine = written(tmp_path / "spare", "mine", "README.md")
    refused = build(path)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {tmp_path}/spare is not empty: ")
    assert [*(tmp_path / "spare").iterdir()] == [mine]
    mine.unlink()
    assert build(path).returncode == 0


@pytest.mark.parametrize("template", ["nowhere", "broken"])
def test_a_template_that_cannot_be_rendered_is_an_error(tmp_path: Path, template: str) -> None:
    broken = shutil.copytree(PATTERN / "template", tmp_path / "broken")
    (broken / "bad.jinja").write_text("{{ nothing.at_all }}")
    path, output = written(tmp_path, text()), tmp_path / "out"
    refused = build(path, "--output", output, "--template", tmp_path / template)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {tmp_path / template}: "), refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (output / "spare").exists()


# --- the template ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
def test_the_template_knows_the_data_sets_of_scikit_learn(name: str, tmp_path: Path) -> None:
    data = getattr(sklearn.datasets, f"load_{name}")()
    x_train, x_test = train_test_split(data.data, test_size=0.3, stratify=data.target)
    described = DATASETS[name]
    assert (described["rows"], described["features"]) == data.data.shape
    # A number of float32 takes up to 23 characters, with its sign and a comma 25.
    assert described["rows_of_a_request"] * described["features"] * 25 < LARGEST_BODY_BYTES
    assert described["labels"] == len(data.target_names)
    rows = data.data.tolist()
    assert all(row in rows for row in json.loads(described["sample"]))
    service = tmp_path / "service"
    render(read(written(tmp_path, text(dataset=name))), service)
    split = (service / f"train/{name}.py").read_text()
    assert f"[rows]: {len(x_train)} for training, {len(x_test)} for testing." in split
    assert f"FEATURES = {data.data.shape[1]}\n" in (service / "app/schema.py").read_text()


@pytest.mark.parametrize("name", DATASETS)
def test_a_rendered_service_is_clean_for_ruff(name: str, tmp_path: Path) -> None:
    service = tmp_path / "service"
    render(read(written(tmp_path, text(**LONGEST, dataset=name))), service)
    # `.breast_cancer` would stand above `.convert`.
    ignored = ["--ignore", "I001"] if name < "convert" else []
    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    for options in (["check", *ignored], ["format", "--check"]):
        ruff = str(Path(sys.executable).with_name("ruff"))
        command = [ruff, *options, *config, str(service)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout


def test_only_a_template_in_a_git_repository_has_versions(tmp_path: Path) -> None:
    assert not [*PATTERN.glob("services/*/.copier-answers.yml")]
    template = shutil.copytree(PATTERN / "template", tmp_path / "template")
    git = ["git", "-c", "user.name=team", "-c", "user.email=team@example.org", "-C", str(template)]
    for words in (["init"], ["add", "."], ["commit", "--message", "v1"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    # Where the template is does not depend on the directory.
    built = build(written(tmp_path, text()), "--template", "template", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    answers = yaml.safe_load((tmp_path / "spare/.copier-answers.yml").read_text())
    assert (answers["_commit"], answers["_src_path"]) == ("v1", str(template))
    assert not (tmp_path / "spare/.git").exists()


SAME = """
import numpy as np, onnxruntime
from train.model import export, fit
from train.{name} import load
split = load()
pipeline = fit(split.x_train, split.y_train)
session = onnxruntime.InferenceSession(export(pipeline))
found = session.run(["probabilities"], {{"X": split.x_test}})[0]
np.testing.assert_allclose(found, pipeline.predict_proba(split.x_test), rtol=0, atol=1e-4)
"""


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"iris"}))
def test_the_converted_model_computes_the_same_as_scikit_learn(name: str, tmp_path: Path) -> None:
    render(read(written(tmp_path, text(dataset=name))), tmp_path / "service")
    command = [sys.executable, "-c", SAME.format(name=name)]
    subprocess.run(command, cwd=tmp_path / "service", check=True)


def test_a_service_has_the_targets_of_a_pattern_here_and_its_own_elsewhere(tmp_path: Path) -> None:
    def shown(directory: Path, *words: str) -> str:
        command = ["make", "--no-print-directory", "-C", str(directory), *words]
        env = os.environ | {"RUN": "local"}
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

    assert shown(PATTERN / "services/wine", "ps") == "wine is not up\n"
    assert "Build, start" in shown(shutil.copytree(PATTERN / "services/wine", tmp_path / "wine"))


# --- the contract ---------------------------------------------------------------------------------


class Nonsense(BaseHTTPRequestHandler):
    """Answers everything with the same text."""

    text = b"nonsense"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(self.text)))
        self.end_headers()
        self.wfile.write(self.text)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


@pytest.fixture
def nonsense(request: pytest.FixtureRequest) -> Iterator[str]:
    handler = type("Handler", (Nonsense,), {"text": request.param})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def check(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "contract.py", url]
    return subprocess.run(command, cwd=PATTERN, capture_output=True, text=True, check=False)


BODIES = [b"nonsense", b"", b"null", b"[]", b'{"labels": 3, "sample": 5}', b'{"sample": [["a"]]}']


@pytest.mark.parametrize("nonsense", BODIES, indirect=True, ids=map(str, BODIES))
def test_a_server_that_answers_nonsense_keeps_next_to_nothing(nonsense: str) -> None:
    checked = check(nonsense)
    assert checked.returncode == 1, checked.stderr
    *broken, summary = checked.stdout.splitlines()
    kept = int(summary.partition(" ")[0])
    # /ready answers 200.
    assert kept <= 1
    assert len(broken) == len(contract.CLAUSES) - kept
    assert all(line.startswith("broken: ") for line in broken)
    assert checked.stderr == ""


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:x", "http://[", ""])
def test_no_answer_is_an_error_of_one_line(url: str) -> None:
    checked = check(url)
    assert (checked.returncode, checked.stdout) == (2, "")
    assert checked.stderr.startswith("error: ")
    assert checked.stderr.count("\n") == 1


def test_a_clause_is_a_sentence_and_there_are_enough() -> None:
    assert len(contract.CLAUSES) >= 24
    assert all(len(clause.split()) > 3 for clause in contract.CLAUSES)


# --- the claim ------------------------------------------------------------------------------------


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_controls_do_not(tmp_path: Path) -> None:
    for name in ("digits", "iris", "wine"):
        service = PATTERN / "services" / name
        if not (service / "models/metadata.json").exists():
            command = [sys.executable, "-m", "train"]
            subprocess.run(command, cwd=service, check=True, capture_output=True)
    module = "chapter4_serving_patterns.template_pattern.measure"
    command = [sys.executable, "-m", module, "--quick", "--output", str(tmp_path / "measure")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    results = load_results(tmp_path)
    assert results.counts == {
        "files_equal_to_web_single": 28,
        "renderings_equal": 3,
        "hand_written_lines": 0,
        "wrong_parameters_refused": 13,
        "contract_clauses_kept": 3 * len(contract.CLAUSES),
        "v1_clients_pass_v2": 3,
        "breaking_changes_caught": 6,
        "edits_kept": 3,
        "conflicts_reported": 1,
    }
    control = dict(results.control)
    # Copier itself refuses what is no mapping or not in its list.
    assert control.pop("wrong_parameters_refused") < 6
    assert control.pop("contract_clauses_kept") < 60
    assert control.pop("files_equal_to_web_single") < 28
    assert control.pop("hand_written_lines") > 50
    assert set(control.values()) == {0}
    kept, *broken = results.series["clauses_kept"]
    assert (kept, len(broken)) == (len(contract.CLAUSES), 6)
    assert all(clauses < kept for clauses in broken)


def test_each_service_runs_alone(tmp_path: Path) -> None:
    """A service that is copied out of the repository needs nothing of it."""
    ignored = shutil.ignore_patterns("models", "__pycache__")
    service = shutil.copytree(PATTERN / "services/wine", tmp_path / "wine", ignore=ignored)
    subprocess.run([sys.executable, "-m", "train"], cwd=service, check=True, capture_output=True)
    with run_uvicorn("app.main:app", cwd=service) as server:
        assert [*contract.broken(server.url)] == []
        env = os.environ | {"PORT": server.url.rpartition(":")[2]}
        client = [sys.executable, "client.py"]
        printed = subprocess.run(
            client, cwd=service, env=env, check=True, stdout=subprocess.PIPE, text=True
        )
    assert printed.stdout == "class_0\n"
