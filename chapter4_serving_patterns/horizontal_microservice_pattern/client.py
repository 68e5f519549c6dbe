"""Prints the label of each row in sample.json, and what is missing; needs httpx and the proxy."""

import json
import os
from pathlib import Path

import httpx

sample = json.loads(Path(__file__).with_name("sample.json").read_bytes())
url = f"http://localhost:{os.environ.get('PORT', '9000')}"
# Longer than the deadline of the proxy, which always responds by then.
with httpx.Client(base_url=url, timeout=5) as client:
    response = client.post("/predict/label", json=sample).raise_for_status()
    print(*response.json()["prediction"], sep="\n")
    for service, reason in response.json().get("missing", {}).items():
        print(f"{service} is missing: {reason}")
