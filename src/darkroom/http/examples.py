"""What OpenAPI says of the two routes: the fields as the manual has them, with examples that work on the demo model."""

from __future__ import annotations

from typing import Any

FIELDS: dict[str, Any] = {
    "model": {"type": "string", "description": "a model of the service; its default where absent"},
    "prompt": {"type": "string", "minLength": 1, "maxLength": 10000, "description": "prompt to render"},
    "negative_prompt": {"type": "string", "maxLength": 10000, "default": "", "description": "prompt to exclude"},
    "steps": {"type": "integer", "minimum": 10, "maximum": 50, "default": 30, "description": "number of diffusion steps"},
    "height": {"type": "integer", "minimum": 128, "multipleOf": 64, "default": 512, "description": "pixels"},
    "width": {"type": "integer", "minimum": 128, "multipleOf": 64, "default": 512, "description": "pixels"},
    "cfg_scale": {"type": "number", "minimum": 0, "maximum": 35, "default": 7, "description": "how strictly to follow the prompt; up to 1 no guidance"},
    "seed": {"type": "integer", "minimum": 0, "maximum": 4294967295, "default": 0, "description": "random noise seed; 0 draws one"},
    "n": {"type": "integer", "minimum": 1, "maximum": 8, "default": 1, "description": "pictures; more than 1 not where the reply is the picture itself"},
    "store": {"type": "boolean", "default": True, "description": "false keeps nothing after the delivery"},
    "response_format": {"type": "string", "enum": ["b64", "url"], "description": "of pictures within JSON and events"},
    "preview_every": {"type": "integer", "minimum": 0, "maximum": 50, "default": 0, "description": "with events or a job: a preview after every so many steps"},
    "webhook_url": {"type": "string", "maxLength": 2000, "description": "with events or a job: an address that is told of its end"},
    "loras": {
        "type": "array", "maxItems": 8, "default": [], "description": "LoRAs to lay over the model; `GET /v1/models` names those that fit it",
        "items": {
            "type": "object", "required": ["name"], "additionalProperties": False,
            "properties": {"name": {"type": "string"}, "scale": {"type": "number", "minimum": -10, "maximum": 10, "default": 1}},
        },
    },
}  # fmt: skip
IMAGE: dict[str, Any] = {
    "image": {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP"},
    "control_strength": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.35, "description": "influence of the image: 1 keeps it, 0 ignores it"},
    "loras": {"type": "string", "description": 'LoRAs to lay over the model, as JSON text: [{"name": "...", "scale": 0.8}]'},
}
ERROR: dict[str, Any] = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "name": {"type": "string"}, "errors": {"type": "array", "items": {"type": "string"}}},
    "required": ["id", "name", "errors"],
}
STATUSES = {
    "400": "the body is not JSON or not multipart", "401": "no key, or an unknown one", "403": "a key of another service", "404": "no such model or service",
    "406": "Accept admits nothing that the route answers with", "408": "the body did not come in time",
    "413": "too large", "415": "another media type", "422": "a field breaks its rule", "429": "the queue is full, or a limit of the key is reached",
    "504": "the job could not begin in time", "503": "the weights are not here",
}  # fmt: skip


def _route(media: str, fields: dict[str, Any], required: list[str], example: dict[str, Any] | None) -> dict[str, Any]:
    schema = {"type": "object", "properties": fields, "required": required, "additionalProperties": False}
    content = {"schema": schema} | ({"example": example} if example else {})
    errors = {status: {"description": text, "content": {"application/json": {"schema": ERROR}}} for status, text in STATUSES.items()}
    binary, any_object = {"schema": {"type": "string", "format": "binary"}}, {"schema": {"type": "object"}}
    replies = dict.fromkeys(("image/png", "image/jpeg", "image/webp"), binary) | {"application/json": any_object, "text/event-stream": {}}
    picture = {"description": "the picture as raw bytes, or as Accept says", "content": replies}
    later = {"description": "the job that was taken (Prefer: respond-async)", "content": {"application/json": any_object}}
    body = {"required": True, "content": {media: content}}
    return {"requestBody": body, "responses": {"200": picture, "202": later, **errors}, "security": [{"bearer": []}]}


GENERATE = _route("application/json", FIELDS, ["prompt"], {"prompt": "an apple on a blue background", "steps": 20, "width": 256, "height": 256, "seed": 7})
SIDE_OF_THE_PICTURE = {"type": "integer", "minimum": 128, "multipleOf": 64, "description": "pixels; the picture's own size decides where absent"}
CONTROL = _route(
    "multipart/form-data", FIELDS | {"height": SIDE_OF_THE_PICTURE, "width": SIDE_OF_THE_PICTURE} | IMAGE, ["prompt", "image"],
    {"prompt": "an apple on a yellow background", "steps": 20, "control_strength": 0.35, "seed": 7},
)  # fmt: skip
