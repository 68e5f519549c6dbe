"""Prints the lane of each letter in sample.json; needs httpx and a running server."""

import json
import os
from pathlib import Path

import httpx

sample = json.loads(Path(__file__).with_name("sample.json").read_bytes())
url = f"http://localhost:{os.environ.get('PORT', '8000')}"
# Longer than the deadline of the server, which always responds by then.
with httpx.Client(base_url=url, timeout=5) as client:
    response = client.post("/sort", json=sample).raise_for_status()
    print(*response.json()["lane"], sep="\n")
