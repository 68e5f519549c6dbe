# Copied from chapter4_serving_patterns/web_single_pattern/client.py
"""Prints the label of each row in sample.json; needs httpx and a server, on PORT or 8000."""

import json
import os
from pathlib import Path

import httpx

sample = json.loads(Path(__file__).with_name("sample.json").read_bytes())
# One client for all requests keeps its connection.
with httpx.Client(base_url=f"http://localhost:{os.getenv('PORT') or 8000}", timeout=5) as client:
    response = client.post("/predict/label", json=sample).raise_for_status()
    print(*response.json()["prediction"], sep="\n")
