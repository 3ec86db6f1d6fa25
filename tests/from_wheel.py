"""What an installed wheel holds, told as JSON: run as a script, by a Python that finds proxykd in the wheel alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient

import proxykd
from proxykd.study.study_page import TEMPLATE
from proxykd.text.chat_template import SHIPPED
from services.dashboard.pages import STATIC, mount_page

if __name__ == "__main__":
    app = FastAPI()
    mount_page(app)
    client = TestClient(app)
    paths = [str(path.relative_to(STATIC)) for path in STATIC.rglob("*") if path.is_file()]
    told = {
        "proxykd": str(Path(proxykd.__file__).parent),
        "static": {path: client.get(f"/dashboard/{path}").status_code for path in ["", *paths]},
        "page": client.get("/dashboard/").text,
        "study": TEMPLATE.read_text(),
        "chat_templates": sorted(path.stem for path in SHIPPED.iterdir()),
    }
    json.dump(told, sys.stdout)
