"""prep_pred_pattern: all kinds of pictures, another client, mixed pairs and a pred that fails."""

import base64
import io
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import numpy as np
import pytest
import tritonclient.http as protocol
from PIL import Image, ImageOps, features

from chapter4_serving_patterns.prep_pred_pattern.measure.__main__ import (
    PICTURES,
    QUICK_MUTANTS,
    write_other_half,
)
from chapter4_serving_patterns.prep_pred_pattern.measure.processes import (
    HERE,
    PACKAGE,
    ROOT,
    run_pred,
    run_prep,
)
from chapter4_serving_patterns.prep_pred_pattern.prep import images
from chapter4_serving_patterns.prep_pred_pattern.prep.images import PictureError, tensor_from
from chapter4_serving_patterns.prep_pred_pattern.prep.pair import PairError, load
from chapter4_serving_patterns.prep_pred_pattern.prep.pixels import Preprocessing
from chapter4_serving_patterns.prep_pred_pattern.train.digits import SEED
from chapter4_serving_patterns.prep_pred_pattern.train.digits import load as load_digits
from chapter4_serving_patterns.prep_pred_pattern.train.photos import photos_of
from tools.measure.results import load as load_results
from tools.measure.server import Server
from tools.run.ports import free_port

MODEL = "/v2/models/digits_photos"
SHAPE = (3, 224, 224)
UNFITTED = Preprocessing(256, 224, [0.0] * 3, [1.0] * 3)
JPEG = {"content-type": "image/jpeg"}


@pytest.fixture(scope="module", autouse=True)
def models() -> Path:
    """Trains the pair unless it is there already."""
    if not (HERE / "models/metadata.json").exists():
        subprocess.run([sys.executable, "-m", "train"], cwd=HERE, check=True)
    return HERE / "models"


@pytest.fixture(scope="module")
def photo(models: Path) -> bytes:
    return (models / "sample.jpg").read_bytes()


@pytest.fixture(scope="module")
def pred(models: Path) -> Iterator[Server]:
    with run_pred() as server:
        yield server


@pytest.fixture(scope="module")
def client(pred: Server) -> Iterator[httpx.Client]:
    with run_prep(pred.url) as prep, calling(prep) as client:
        yield client


@contextmanager
def calling(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        yield client


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# --- pictures -------------------------------------------------------------------------------------


def twins() -> dict[str, tuple[bytes, Image.Image]]:
    """Returns pictures of many kinds, and what each looks like in RGB."""
    random = np.random.default_rng(0)
    rgb = Image.fromarray(random.integers(0, 256, (90, 120, 3), np.uint8))
    grey, palette = rgb.convert("L"), rgb.convert("P", palette=Image.Palette.ADAPTIVE)
    transparent = rgb.copy()
    transparent.putalpha(0)
    opaque = rgb.copy()
    opaque.putalpha(255)
    deep = np.asarray(grey).astype(np.uint16) * 257
    cmyk = rgb.convert("CMYK")
    white = Image.new("RGB", rgb.size, "white")
    return {
        "grey": (file_of(grey), grey.convert("RGB")),
        "grey with alpha": (file_of(grey.convert("LA")), grey.convert("RGB")),
        "palette": (file_of(palette), palette.convert("RGB")),
        "opaque": (file_of(opaque), rgb),
        "transparent": (file_of(transparent), white),
        "a colour that is transparent": (file_of(white, transparency=(255, 255, 255)), white),
        "black and white": (file_of(grey.convert("1")), grey.convert("1").convert("RGB")),
        "16 bits": (file_of(Image.fromarray(deep)), grey.convert("RGB")),
        "CMYK": (
            file_of(cmyk, "JPEG", quality=100),
            Image.open(io.BytesIO(file_of(cmyk, "JPEG", quality=100))).convert("RGB"),
        ),
        "WebP": (file_of(rgb, "WEBP", lossless=True), rgb),
        "a single pixel": (
            file_of(Image.new("RGB", (1, 1), "red")),
            Image.new("RGB", (1, 1), "red"),
        ),
        "a line": (file_of(Image.new("RGB", (5_000, 1))), Image.new("RGB", (5_000, 1))),
    }


def test_every_kind_of_picture_has_the_tensor_of_its_rgb_twin() -> None:
    assert features.check("webp")
    for name, (content, twin) in twins().items():
        expected = tensor_from(file_of(twin), UNFITTED)
        assert np.allclose(tensor_from(content, UNFITTED), expected, rtol=0, atol=1e-6), name
        assert expected.shape == SHAPE


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_turned_back(orientation: int, photo: bytes) -> None:
    image = Image.open(io.BytesIO(photo))
    image.getexif()[0x0112] = orientation
    turned = file_of(image, "PNG", exif=image.getexif())
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(turned)))
    expected.getexif().clear()
    assert np.array_equal(
        tensor_from(turned, UNFITTED), tensor_from(file_of(expected.copy()), UNFITTED)
    )


def test_the_tensor_is_the_centre_of_the_picture_by_colour() -> None:
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[16:240, 144:368] = (51, 102, 204)
    preprocessing = Preprocessing(256, 224, [0.1, 0.2, 0.3], [0.5, 0.25, 0.1])
    tensor = tensor_from(file_of(Image.fromarray(pixels)), preprocessing)
    assert tensor.dtype == np.float32
    for colour, value in zip(tensor, (0.2, 0.8, 5.0), strict=True):
        assert np.allclose(colour, value, atol=1e-5)


def test_a_large_jpeg_of_a_phone_is_answered(client: httpx.Client) -> None:
    large = file_of(Image.new("L", (8_160, 6_120)), "JPEG")
    assert client.post("/predict", content=large, headers=JPEG).status_code == 200


def many_scans(count: int) -> bytes:
    """Returns a progressive JPEG whose last scan is repeated."""
    jpeg = file_of(Image.new("L", (64, 64)), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * count + jpeg[-2:]


def invalid() -> dict[str, tuple[bytes, str]]:
    """Returns files that are rejected, and part of the reason."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image = Image.fromarray(noise)
    jpeg, png = file_of(image, "JPEG"), file_of(image)
    formats = "not a picture in one of the formats JPEG, PNG, WEBP"
    return {
        "nothing": (b"", "picture 0: not"),
        "text": (b"a picture", formats),
        "zeros": (bytes(1_000), formats),
        "GIF": (file_of(image, "GIF"), formats),
        "TIFF": (file_of(image, "TIFF"), formats),
        "BMP": (file_of(image, "BMP"), formats),
        "SVG": (b'<svg width="9"/>', formats),
        "PDF": (file_of(image, "PDF"), formats),
        "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", formats),
        "only the start of a JPEG": (jpeg[:2], formats),
        "only the start of a PNG": (png[:8], formats),
        "half a JPEG": (jpeg[: len(jpeg) - 200], "the JPEG is broken or incomplete"),
        "half a PNG": (png[: len(png) - 40], "the PNG is broken or incomplete"),
        "half a WebP": (file_of(image, "WEBP")[:40], "WEBP"),
        "a changed checksum": (png.replace(b"IDAT", b"IDAT\x00", 1), "broken or incomplete"),
        "13,000 x 13,000": (file_of(Image.new("1", (13_000, 13_000))), "13000 x 13000"),
        "a pixel too many": (file_of(Image.new("1", (16_001, 1_000))), "is too large"),
        "a JPEG of 65 million": (file_of(Image.new("L", (65_001, 1_000)), "JPEG"), "is too large"),
        "many scans": (many_scans(60), "more than 50 scans"),
    }


def test_what_is_no_picture_is_refused_with_its_reason(client: httpx.Client) -> None:
    for name, (content, reason) in invalid().items():
        in_json = json.dumps({"data": [base64.b64encode(content).decode() or "===="]})
        for body, headers in ((in_json, {}), (content, JPEG)):
            refused = client.post("/predict/label", content=body, headers=headers)
            assert (name, refused.status_code) == (name, 422)
            assert reason in refused.json()["detail"], name
    assert client.get("/predict/test/label").json() == {"prediction": ["1"]}


def test_a_picture_that_is_too_large_is_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "tensor_of", lambda *_: pytest.fail("it was decoded"))
    for name in ("13,000 x 13,000", "a pixel too many", "a JPEG of 65 million", "many scans"):
        with pytest.raises(PictureError):
            tensor_from(invalid()[name][0], UNFITTED)


def test_the_body_may_be_one_picture(client: httpx.Client, photo: bytes) -> None:
    image = Image.open(io.BytesIO(photo))
    for kind in ("JPEG", "PNG", "WEBP"):
        headers = {"content-type": f"Image/{kind}; q=1"}
        answer = client.post("/predict/label", content=file_of(image, kind), headers=headers)
        assert answer.json() == {"prediction": ["1"]}
    refused = client.post("/predict", content=photo, headers={"content-type": "image/gif"})
    assert refused.status_code == 415


def test_a_request_is_one_call_whose_rows_are_in_order(client: httpx.Client) -> None:
    _, _, x_test, y_test = load_digits()
    photos = photos_of(x_test[:16], SEED + 1)
    data = [base64.b64encode(each).decode() for each in photos]
    together = client.post("/predict", json={"data": data}).json()["prediction"]
    alone = [
        client.post("/predict", json={"data": [each]}).json()["prediction"][0] for each in data
    ]
    assert np.allclose(together, alone, rtol=0, atol=1e-6)
    assert np.mean(np.argmax(together, axis=1) == y_test[:16]) > 0.9


# --- the protocol ---------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
def test_a_foreign_client_gets_predictions(pred: Server, photo: bytes, binary: bool) -> None:
    half = load(HERE / "models")
    tensors = np.stack([tensor_from(photo, half.preprocessing)] * 2)
    client = protocol.InferenceServerClient(pred.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    described = client.get_model_metadata("digits_photos")
    assert described["parameters"] == {"pair": half.pair}
    assert described["inputs"] == [{"name": "pictures", "datatype": "FP32", "shape": [-1, *SHAPE]}]
    given = protocol.InferInput("pictures", tensors.shape, "FP32")
    given.set_data_from_numpy(tensors, binary_data=binary)
    wanted = protocol.InferRequestedOutput("probabilities", binary_data=binary)
    for outputs in ([wanted], None):
        parameters = {"pair": half.pair}
        answer = client.infer(
            "digits_photos", [given], outputs=outputs, request_id="7", parameters=parameters
        )
        assert answer.get_response()["id"] == "7"
        assert answer.as_numpy("probabilities").argmax(axis=1).tolist() == [1, 1]
    with pytest.raises(protocol.InferenceServerException, match=f"this model to {half.pair}"):
        client.infer("digits_photos", [given], parameters={"pair": "another"})
    with pytest.raises(protocol.InferenceServerException, match="no such model"):
        client.infer("another", [given])
    client.close()


def tensor(**changes: object) -> dict[str, object]:
    values = {"name": "pictures", "datatype": "FP32", "shape": [1, *SHAPE]}
    return values | changes


INVALID_TENSORS: dict[str, tuple[dict[str, object], bytes, str]] = {
    "another name": (tensor(name="X"), b"", "only input has to be pictures"),
    "another type": (tensor(datatype="FP64"), b"", "has to be FP32"),
    "another shape": (tensor(shape=[1, 224, 224, 3]), b"", "the shape has to be"),
    "no shape": (tensor(shape=[]), b"", "the shape has to be"),
    "no pictures": (tensor(shape=[0, *SHAPE]), b"", "[1 to 16, 3, 224, 224]"),
    "17 pictures": (tensor(shape=[17, *SHAPE]), b"", "[1 to 16, 3, 224, 224]"),
    "a negative shape": (tensor(shape=[-1, *SHAPE]), b"", "greater than or equal to 0"),
    "no numbers": (tensor(), b"", "needs 150528 numbers, not 0"),
    "too few numbers": (tensor(data=[0.0] * 9), b"", "needs 150528 numbers, not 9"),
    "a text": (tensor(data=["0"]), b"", "valid number"),
    "true": (tensor(data=[True]), b"", "valid number"),
    "above float32": (tensor(data=[1e39] * 150_528), b"", "infinite"),
    "bytes without a size": (tensor(), bytes(602_112), "either data or binary_data_size"),
    "data and bytes": (
        tensor(data=[0.0], parameters={"binary_data_size": 4}),
        bytes(4),
        "either data or binary_data_size",
    ),
    "a size that is true": (tensor(parameters={"binary_data_size": True}), b"\0", "either data"),
    "too few bytes": (tensor(parameters={"binary_data_size": 8}), bytes(4), "the 4 bytes after"),
    "too many bytes": (tensor(parameters={"binary_data_size": 4}), bytes(8), "the 8 bytes after"),
    "an odd size": (tensor(parameters={"binary_data_size": 3}), bytes(3), "the 3 bytes after"),
    "NaN": (
        tensor(parameters={"binary_data_size": 602_112}),
        np.full(150_528, np.nan, np.float32).tobytes(),
        "NaN",
    ),
}


@pytest.mark.parametrize("given", INVALID_TENSORS.values(), ids=INVALID_TENSORS)
def test_an_invalid_tensor_is_refused_in_the_protocol(
    pred: Server, given: tuple[dict[str, object], bytes, str]
) -> None:
    described, binary, reason = given
    header = json.dumps({"inputs": [described]}).encode()
    fields = {"Inference-Header-Content-Length": str(len(header))}
    with calling(pred) as client:
        refused = client.post(f"{MODEL}/infer", content=header + binary, headers=fields)
    assert refused.status_code == 400
    assert reason in refused.json()["error"]


def test_an_invalid_length_of_the_header_is_refused(pred: Server) -> None:
    with calling(pred) as client:
        for text in ("", "-1", "x", "1.5", "3", "9" * 5_000, "\u0661"):
            fields = {b"Inference-Header-Content-Length": text.encode()}
            refused = client.post(f"{MODEL}/infer", content=b"{}", headers=fields)
            assert (text[:9], refused.status_code) == (text[:9], 400)
            assert "not a number of bytes" in refused.json()["error"]
        body = {"inputs": [tensor()], "outputs": [{"name": "scores"}]}
        body["inputs"] = [tensor(data=[0.0] * 150_528)]
        refused = client.post(f"{MODEL}/infer", json=body)
        assert refused.json() == {"error": "the only output is probabilities"}


# --- the pair -------------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path: Path, models: Path) -> Path:
    """The preprocessing of another training."""
    write_other_half(tmp_path, load_digits()[0])
    return tmp_path


def test_another_preprocessing_is_never_ready_and_says_why(
    pred: Server, other: Path, photo: bytes
) -> None:
    own, its = load(other).pair, load(HERE / "models").pair
    reason = f"this preprocessing belongs to the pair {own}, the model of pred to {its}"
    with run_prep(pred.url, other, ready="/health") as prep, calling(prep) as client:
        for answer in (
            client.get("/ready"),
            client.get("/predict/test"),
            client.post("/predict", content=photo, headers=JPEG),
        ):
            assert (answer.status_code, answer.json()) == (503, {"detail": reason})
            assert answer.headers["retry-after"] == "1"
        assert client.get("/health").status_code == 200


def test_a_model_that_is_replaced_while_prep_runs_is_refused(
    client: httpx.Client, tmp_path: Path, models: Path
) -> None:
    """A rolling update replaces pred after prep has checked it."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    metadata = json.loads((tmp_path / "metadata.json").read_bytes())
    (tmp_path / "metadata.json").write_text(json.dumps(metadata | {"pair": "new"}))
    port = free_port()
    with run_pred(port=port) as old, run_prep(old.url) as prep, calling(prep) as caller:
        assert caller.get("/predict/test/label").json() == {"prediction": ["1"]}
        old.kill()
        gone = caller.get("/predict/test/label")
        assert (gone.status_code, gone.json()) == (503, {"detail": "pred is out of reach"})
        with run_pred(tmp_path, port=port):
            refused = caller.get("/predict/test/label")
            assert refused.status_code == 503
            assert refused.json()["detail"].endswith("the model of pred to new")
        with run_pred(port=port):
            assert caller.get("/predict/test/label").json() == {"prediction": ["1"]}


def test_each_file_of_the_pair_is_checked_at_the_start(tmp_path: Path, models: Path) -> None:
    for name in ("preprocessing.json", "metadata.json", "sample.jpg"):
        shutil.copytree(models, tmp_path, dirs_exist_ok=True)
        for content in (b"", b"{}", b"\xff\xff"):
            (tmp_path / name).write_bytes(content)
            if (name, content) != ("metadata.json", b"{}"):
                with pytest.raises(PairError, match="run python -m train"):
                    load(tmp_path)


# --- a pred that fails ----------------------------------------------------------------------------


class Scripted(BaseHTTPRequestHandler):
    """Sends what the test wants."""

    status: ClassVar[int] = 200
    fields: ClassVar[dict[str, str]] = {}
    content: ClassVar[bytes] = b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.respond()

    def do_GET(self) -> None:
        self.respond()

    def respond(self) -> None:
        self.send_response(self.status)
        for name, value in {"content-length": str(len(self.content)), **self.fields}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        """The log of a test is not read."""


@pytest.fixture(scope="module")
def scripted() -> Iterator[httpx.Client]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with run_prep(url, ready="/health") as prep, calling(prep) as client:
            yield client
        server.shutdown()
        thread.join()


def answer_of(shape: list[int], size: int, values: np.ndarray) -> tuple[dict[str, str], bytes]:
    output = {"name": "p", "shape": shape, "parameters": {"binary_data_size": size}}
    header = json.dumps({"outputs": [output]}).encode()
    fields = {"Inference-Header-Content-Length": str(len(header))}
    return fields, header + values.astype(np.float32).tobytes()


NONSENSE: dict[str, tuple[int, dict[str, str], bytes]] = {
    "a 500": (500, {}, b'{"error": "it broke"}'),
    "a 404": (404, {}, b"{}"),
    "a redirect": (302, {"location": "/health"}, b""),
    "HTML": (200, {"content-type": "text/html"}, b"<html>"),
    "JSON instead of bytes": (200, {}, b'{"outputs": [{"shape": [1, 10]}]}'),
    "no outputs": (200, {"Inference-Header-Content-Length": "15"}, b'{"outputs": []}'),
    "another length": (200, {"Inference-Header-Content-Length": "x"}, b"{}"),
    "two for one picture": (200, *answer_of([2, 10], 80, np.zeros(20))),
    "too few bytes": (200, *answer_of([1, 10], 40, np.zeros(5))),
    "another shape": (200, *answer_of([10], 40, np.zeros(10))),
    "NaN": (200, *answer_of([1, 10], 40, np.full(10, np.nan))),
    "too large": (200, {}, bytes(2_000_000)),
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_of_pred_is_a_502(
    scripted: httpx.Client, answer: tuple[int, dict[str, str], bytes]
) -> None:
    Scripted.status, Scripted.fields, Scripted.content = answer
    for path in ("/predict/test", "/predict/test/label"):
        refused = scripted.get(path)
        assert refused.status_code == 502
        assert "pred" in refused.json()["detail"]


def test_an_overloaded_pred_is_passed_on_and_leaves_prep_ready(scripted: httpx.Client) -> None:
    Scripted.status, Scripted.fields, Scripted.content = 503, {}, b"{}"
    refused = scripted.get("/predict/test")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert scripted.get("/ready").status_code == 200


def test_a_pred_that_hangs_is_a_504(photo: bytes) -> None:
    over = threading.Event()

    class Hanging(Scripted):
        def respond(self) -> None:
            over.wait(60)

    with ThreadingHTTPServer(("127.0.0.1", 0), Hanging) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with (
            run_prep(url, ready="/health", DEADLINE_SECONDS="0.2") as prep,
            calling(prep) as client,
        ):
            late = client.post("/predict", content=photo, headers=JPEG)
            assert (late.status_code, late.json()["detail"]) == (
                504,
                "no response from pred within 0.2 s",
            )
        over.set()
        server.shutdown()
        thread.join()


# --- the measurement ------------------------------------------------------------------------------


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_controls_do_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"{PACKAGE}.measure", "--quick"]
    ended = subprocess.run(
        [*command, "--output", str(tmp_path / "measure")], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = load_results(tmp_path)
    assert results.counts == {
        "pictures": PICTURES,
        "pictures_equal": PICTURES,
        "foreign_modules": 0,
        "mixed_answers": 0,
        "mutants": QUICK_MUTANTS,
        "mutants_500": 0,
    }
    control = dict(results.control)
    assert control.pop("mutants_500") > 0
    assert control == {"pictures_equal": 0, "foreign_modules": 2, "mixed_answers": PICTURES}
