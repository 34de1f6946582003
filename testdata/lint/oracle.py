"""What cloud-init's own code has against documents.

Reads {"kind": ..., "documents": {name: text}} as JSON and prints {name: {"errors": [[path, message]],
"deprecated": [[path, message]]}}; with "schema", a path, that schema is used instead of its own.
"""

import json
import sys

from cloudinit import safeyaml
from cloudinit.config import schema as cloudinit

request = json.load(sys.stdin)
schema = cloudinit.get_schema()
if request.get("schema"):
    with open(request["schema"]) as file:
        schema = json.load(file)


def judge(text):
    try:
        document = safeyaml.load(text)
    except Exception as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = [mark.line + 1, mark.column + 1] if mark else None
        return {"yaml": str(error), "mark": place}
    try:
        cloudinit.validate_cloudconfig_schema(document, schema=schema, strict=True)
    except cloudinit.SchemaValidationError as error:
        return {
            "errors": sorted(set(error.schema_errors or [])),
            "deprecated": sorted(set(error.schema_deprecations or [])),
        }
    except Exception as error:
        return {"errors": [["", repr(error)]], "deprecated": []}
    return {"errors": [], "deprecated": []}


json.dump({name: judge(text) for name, text in request["documents"].items()}, sys.stdout, indent=1)
