"""Prints the digit of each row in sample.json and the stages it took; needs httpx and the proxy."""

import json
import os
from pathlib import Path

import httpx

sample = json.loads(Path(__file__).with_name("sample.json").read_bytes())
url = f"http://localhost:{os.environ.get('PORT', '8000')}"
# Longer than the deadline of the proxy, which always responds by then.
with httpx.Client(base_url=url, timeout=5) as client:
    answer = client.post("/predict/label", json=sample).raise_for_status().json()
    for label, stages in zip(answer["prediction"], answer["stages"], strict=True):
        print(label, *stages)
    for stage, reason in answer.get("missing", {}).items():
        print(f"{stage} is missing: {reason}")
