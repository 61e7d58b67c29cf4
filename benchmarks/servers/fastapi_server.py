"""A bare FastAPI route, the peer that does nothing but HTTP: `python fastapi_server.py echo PORT`."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Body(BaseModel):
    x: int


class Answer(BaseModel):
    result: int


@app.post("/echo")
async def echo(body: Body) -> Answer:
    return Answer(result=body.x)


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), loop="uvloop", http="httptools", access_log=False, log_level="warning")
