"""Prints what each model decides for the rows in sample.json; needs httpx and a running proxy."""

import json
import os
from pathlib import Path

import httpx

sample = json.loads(Path(__file__).with_name("sample.json").read_bytes())
url = f"http://localhost:{os.environ.get('PORT', '9000')}"
# Longer than the deadline of any model.
with httpx.Client(base_url=url, timeout=5) as client:
    response = client.post("/predict", json=sample).raise_for_status()
    print(*response.json()["prediction"], sep="\n")
