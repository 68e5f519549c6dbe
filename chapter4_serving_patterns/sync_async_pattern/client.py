"""Sends sample.json and prints both answers; needs httpx and a server, on PORT or 8000."""

import json
import os
from pathlib import Path

import httpx

sample = json.loads(Path(__file__).with_name("sample.json").read_bytes())
with httpx.Client(base_url=f"http://localhost:{os.getenv('PORT') or 8000}", timeout=40) as client:
    first = client.post("/predict/label", json=sample).raise_for_status().json()
    print("first:", first["prediction"])
    if job_id := first["job_id"]:
        second = client.get(f"/job/{job_id}", params={"wait_seconds": 30}).raise_for_status()
        print("second:", second.json().get("prediction"))
