"""The reference of docs/API.md out of the OpenAPI document: operations by resource, then the objects."""

MARK = "## Reference"


def _cell(text):
    return (text or "").replace("|", "\\|").replace("\n", " ")


def _type(schema):
    if "$ref" in schema:
        name = schema["$ref"].split("/")[-1]
        return f"[{name}](#{name.lower()})"
    t = schema.get("type", "")
    kinds = t if isinstance(t, list) else [t]
    if "array" in kinds:
        inner = _type(schema["items"]) if "properties" not in schema["items"] else "object"
        text = f"[{inner}]" if "](" not in inner else f"list of {inner}"
    elif "enum" in schema:
        text = " ".join(f"`{v}`" for v in schema["enum"])
    elif schema.get("format") == "date-time":
        text = "time"
    else:
        text = next((k for k in kinds if k != "null"), "")
    return text + (" or null" if "null" in kinds else "")


def _fields(schema, prefix=""):
    """One row a member; members of nested objects with their path."""
    required = set(schema.get("required", []))
    for name, s in schema.get("properties", {}).items():
        yield prefix + name, _type(s), name in required, s.get("description", ""), s
        inner = s.get("items", s)
        if "properties" in inner:
            yield from _fields(inner, prefix + name + ("[]." if "items" in s else "."))



def reference(doc):
    """Markdown, from MARK on."""
    out = [MARK, "", "Made of the OpenAPI document. Who may: the least role (`x-role`), and the scope a token with scopes needs.", ""]
    groups = {}
    for path, methods in doc["paths"].items():
        for method, op in methods.items():
            groups.setdefault(op["operationId"].split(".")[0], []).append((path, method.upper(), op))
    requests = set()
    for name in sorted(groups):
        out += [f"### {name}", "", "| | | who | |", "|---|---|---|---|"]
        for path, method, op in groups[name]:
            body = op.get("requestBody", {}).get("content", {})
            media = next(iter(body), None)
            takes = body[media]["schema"]["$ref"].split("/")[-1] if media and "$ref" in body[media].get("schema", {}) else ""
            if takes:
                requests.add(takes)
            good = [c for c in op["responses"] if c != "default"][0]
            content = op["responses"][good].get("content", {})
            kind = next(iter(content), None)
            gives = ""
            if kind == "application/json" and "schema" in content[kind]:
                schema = content[kind]["schema"]
                gives = _type(schema["properties"]["items"]) if "properties" in schema and "items" in schema["properties"] else _type(schema)
            who = " ".join(f"`{x}`" for x in (op.get("x-role"), op.get("x-scope")) if x) or "anybody"
            params = [f"`{p['name']}`" for p in op.get("parameters", []) if p["in"] == "query" and p["name"] not in ("limit", "cursor")]
            text = _cell(op.get("summary", ""))
            text += f". Takes [{takes}](#{takes.lower()})" if takes else ""
            text += f". Gives {gives}" if gives else ""
            text += ". Parameters: " + " ".join(params) if params else ""
            out.append(f"| {method} | `{path.replace('|', '')}` | {who} | {text} |")
        out.append("")
    out += ["### Objects", "", "A member in **bold** must be there; in an answer all are, unless said otherwise.", ""]
    for name, schema in sorted(doc["components"]["schemas"].items()):
        out += [f"#### {name}", "", "| member | type | |", "|---|---|---|"]
        for path, kind, is_required, about, s in _fields(schema):
            bounds = []
            if name in requests:
                if "maxLength" in s and s["maxLength"] != 200:
                    bounds.append(f"at most {s['maxLength']} characters")
                if "maximum" in s:
                    bounds.append(f"{s.get('minimum', 0)} to {s['maximum']}")
                if "maxItems" in s and s["maxItems"] != 100:
                    bounds.append(f"at most {s['maxItems']}")
            text = "; ".join(x for x in (_cell(about), ", ".join(bounds)) if x)
            shown = f"**{path}**" if is_required and name in requests else path
            out.append(f"| {shown} | {kind} | {text} |")
        out.append("")
    codes = doc["components"].get("x-problems", [])
    if codes:
        out += ["### Codes", "", "What `code` of a problem document can be. `field` names the offending member, parameter or header.", "", "| status | code | |", "|---|---|---|"]
        out += [f"| {c['status']} | `{c['code']}` | {_cell(c['about'])} |" for c in codes] + [""]
    return "\n".join(out).rstrip() + "\n"
