"""The manual's four snippets, with only what its storage lost put back (addresses, three values, a few brackets), run as
a reader runs them: pasted into a file, or into a shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.conftest import Server

GENERATE = '''
import requests
import base64
# Define the URL and the payload to send.
url = "$SERVICE_ID/v1/images/generate"
# Set Authorization header
Headers = { "Authorization" : "Bearer {}".format("$API_KEY") }
payload = {
    "model": "$MODEL",
    "prompt": "puppy dog",
    "steps": 30,
    "height": 512,
    "width": 512,
    "cfg_scale": 10,
}
# Send said payload to said URL through the API.
response = requests.post(url=f'{url}', json=payload, headers=Headers, stream=True)
# Decode and save the image.
with open("output.png", 'wb') as f:
    for chunk in response.iter_content(chunk_size=8192):
        f.write(chunk)
'''
CONTROL = '''
import requests
import base64
import json
# Define the URL and the payload to send.
url = "$SERVICE_ID/v1/images/control"
# Set Authorization header
Headers = { "Authorization" : "Bearer {}".format("$API_KEY") }
file_path = "input.png"
with open(file_path, 'rb') as image_file:
    payload = {
        "model": "$MODEL",
        "prompt": "Put glassed on the dog",
        "negative_prompt": "",
        "steps": 30,
        "cfg_scale": 10,
    }
    files = {
        'image': (file_path, image_file, 'application/octet-stream'),  # Binary file
        "model": "$MODEL",
    }
    # Send said payload to said URL through the API.
    response = requests.post(url=f'{url}', files=files, data=payload, headers=Headers)
    # Decode and save the image.
    with open("output.png", 'wb') as f:
        for chunk in response.iter_content(chunk_size=8192):
            f.write(chunk)
'''
CURL_GENERATE = '''
curl $SERVICE_ID/v1/images/generate \\
  -H "Content-Type: application/json" \\
  -H "Authorization: Bearer $API_KEY" \\
  -d '{
        "model": "$MODEL",
        "prompt": "a cat ",
        "steps": 20,
        "height": 512,
        "width": 512,
        "cfg_scale": 10
   }' \\
   -o out.png
'''
CURL_CONTROL = '''
curl -X POST $SERVICE_ID/v1/images/control \\
    -F "model=$MODEL" \\
    -F "prompt=add an apple" \\
    -F "image=@test.png" \\
    -F "negative_prompt=" \\
    -F "steps=30" \\
    -F "cfg_scale=10" \\
    -H "Authorization: Bearer $API_KEY" \\
    -o out.png
'''


def run(server: Server, folder: Path, text: str, *command: str) -> None:
    for name, value in {"$SERVICE_ID": server.service_id, "$API_KEY": server.key, "$MODEL": server.model}.items():
        text = text.replace(name, value)
    done = subprocess.run([*command, text], cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def test_python_generate_then_control(server: Server, tmp_path: Path) -> None:
    run(server, tmp_path, GENERATE, sys.executable, "-c")
    assert Image.open(tmp_path / "output.png").size == (512, 512)
    (tmp_path / "output.png").rename(tmp_path / "input.png")
    run(server, tmp_path, CONTROL, sys.executable, "-c")
    assert Image.open(tmp_path / "output.png").size == (512, 512)


def test_curl_generate_then_control(server: Server, tmp_path: Path) -> None:
    run(server, tmp_path, CURL_GENERATE, "bash", "-c")
    assert Image.open(tmp_path / "out.png").size == (512, 512)
    (tmp_path / "out.png").rename(tmp_path / "test.png")
    run(server, tmp_path, CURL_CONTROL, "bash", "-c")
    assert Image.open(tmp_path / "out.png").size == (512, 512)
