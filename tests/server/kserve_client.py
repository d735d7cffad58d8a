"""A request through KServe's client, in an environment of its own: kserve_client.py ADDRESS, texts on standard input.

Prints what it was told and answered as JSON.
"""

import asyncio
import json
import sys

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def main(address: str, texts: list[str]) -> dict[str, object]:
    """What the client says of the server and of the models `spam` and `masks`, which has nothing to fill in."""
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    told: dict[str, object] = {
        "live": await client.is_server_live(address),
        "ready": await client.is_server_ready(address),
        "models": {name: await client.is_model_ready(address, name) for name in ("spam", "other")},
    }
    for binary in (True, False):
        text = InferInput("text", [len(texts)], "BYTES")
        text.set_data_from_numpy(np.array([each.encode() for each in texts], np.object_), binary_data=binary)
        for binary_out in (True, False):
            parameters = {"top_k": 2, "binary_data_output": binary_out}
            request = InferRequest("spam", [text], request_id="7", parameters=parameters)
            reply = await client.infer(address, request, model_name="spam")
            told[f"{binary=} {binary_out=}"] = {
                "id": reply.id,
                **{each.name: _plain(each.as_numpy().tolist()) for each in reply.outputs},
            }
    text = InferInput("text", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"nothing is hidden"], np.object_), binary_data=False)
    try:
        await client.infer(address, InferRequest("masks", [text]), model_name="masks")
    except httpx.HTTPStatusError as error:
        told["refusal"] = str(error)
    await client.close()
    return told


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value


if __name__ == "__main__":
    json.dump(asyncio.run(main(sys.argv[1], json.load(sys.stdin))), sys.stdout)
