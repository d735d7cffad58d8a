"""A transformers pipeline in FastAPI, as the tutorials have it: BENCH_ARTIFACT=… uvicorn fastapi_app:app."""

import os

import torch
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "2")))
classify = pipeline("text-classification", model=os.environ["BENCH_ARTIFACT"], device="cpu")
app = FastAPI()


class Request(BaseModel):
    text: str


@app.post("/predict")
def predict(request: Request) -> list[dict[str, object]]:
    """In a thread of the pool, as FastAPI does with plain functions."""
    return list(classify(request.text, truncation=True, max_length=int(os.environ["BENCH_MAX_LENGTH"])))
