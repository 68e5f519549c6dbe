"""Prints the label of the photo in sample.jpg; needs httpx and a running server."""

import os
from pathlib import Path

import httpx

photo = Path(__file__).with_name("sample.jpg").read_bytes()
url = f"http://localhost:{os.environ.get('PORT', '8000')}"
# Longer than the deadline of the server, which always responds by then.
with httpx.Client(base_url=url, timeout=10) as client:
    headers = {"content-type": "image/jpeg"}
    response = client.post("/predict/label", content=photo, headers=headers).raise_for_status()
    print(*response.json()["prediction"], sep="\n")
