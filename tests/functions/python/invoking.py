"""Drives a Lambda Invoke API with boto3: invoking.py ENDPOINT, one JSON object a line with what came of each call."""

import json
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

client = boto3.client(
    "lambda",
    endpoint_url=sys.argv[1],
    region_name="us-east-1",
    aws_access_key_id="anyone",
    aws_secret_access_key="anything",
    config=Config(retries={"total_max_attempts": 1}),
)


def event(do, padding=""):
    image = {"name": "image", "datatype": "FP32", "shape": [3], "data": [1, 2, 3.5]}
    parameters = {"do": do, "padding": padding}
    return json.dumps({"model_name": "python", "id": "mine", "parameters": parameters, "inputs": [image]})


def call(name, payload, kind="RequestResponse"):
    try:
        answer = client.invoke(FunctionName=name, Payload=payload, InvocationType=kind)
    except ClientError as error:
        told = {"error": error.response["Error"]["Code"], "status": error.response["ResponseMetadata"]["HTTPStatusCode"]}
    else:
        body = answer["Payload"].read()
        told = {
            "status": answer["StatusCode"],
            "function_error": answer.get("FunctionError"),
            "version": answer.get("ExecutedVersion"),
            "body": json.loads(body) if body else None,
        }
    print(json.dumps(told), flush=True)


call("python", event("sum"))
call("arn:aws:lambda:us-east-1:000000000000:function:python", event("sum"))
call("python", event("raise"))
call("python", event("crash"))
call("python", event("sum"))
call("python", event("sum"), "DryRun")
call("nobody", event("sum"))
call("python", event("sum", "x" * 6 * 1024 * 1024))
call("python", event("hang"), "Event")
call("python", event("sum"))
