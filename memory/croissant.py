"""The training data as MLCommons Croissant 1.0 describes data sets: where it is, and a record for each file."""
import json

CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
    "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/", "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract", "field": "cr:field",
    "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject", "fileSet": "cr:fileSet", "format": "cr:format",
    "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath", "key": "cr:key",
    "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path", "recordSet": "cr:recordSet",
    "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace",
    "samplingRate": "cr:samplingRate", "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source",
    "subField": "cr:subField", "transform": "cr:transform"}
FIELDS = {"path": "sc:Text", "bytes": "sc:Integer", "sha256": "sc:Text"}


def file_object(name, url, sha256, kind, what):
    return {"@type": "cr:FileObject", "@id": name, "name": name, "description": what, "contentUrl": url,
            "encodingFormat": kind, "sha256": sha256}


def describe(manifest, hashes):
    """The bytes of croissant.json. hashes: {name in the model's folder: SHA-256 (hex)}, of manifest.json and, if it is
    there, source.tar.xz."""
    whole, name = manifest["whole_tree"], manifest["name"]
    there = [file_object("manifest.json", "manifest.json", hashes["manifest.json"], "application/json",
                         "The files that were learned: path, bytes, SHA-256.")]
    if whole["url"]:
        archive = file_object("release", whole["url"], whole["sha256"], "application/x-tar",
                              "The tree as it was released.")
        there.append({key: value for key, value in archive.items() if value})
    if "source.tar.xz" in hashes:
        there.append(file_object("source.tar.xz", "source.tar.xz", hashes["source.tar.xz"], "application/x-tar",
                                 "The tree, beside the model."))
    records = {"@type": "cr:RecordSet", "@id": "files", "name": "files",
               "description": "A record for each file learned.",
               "key": {"@id": "files/path"}, "field": [
                   {"@type": "cr:Field", "@id": f"files/{field}", "name": field, "description": f"{field} of the file",
                    "dataType": kind, "source": {"fileObject": {"@id": "manifest.json"},
                                                 "extract": {"jsonPath": f"$.files[*].{field}"}}}
                   for field, kind in FIELDS.items()]}
    document = {
        "@context": CONTEXT, "@type": "sc:Dataset", "conformsTo": "http://mlcommons.org/croissant/1.0", "name": name,
        "description": f"{len(manifest['files'])} files of {name}, {whole['swhid']}, which the model in this folder "
                       f"learned; held out: {len(manifest['held_out'])}.",
        "identifier": whole["swhid"], "license": manifest["licence"] or "none found", "url": whole["url"],
        "distribution": there, "recordSet": [records]}
    return (json.dumps({key: value for key, value in document.items() if value}, indent=1) + "\n").encode()
