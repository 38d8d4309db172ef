"""Prepares moto's Lambda for a client: at_moto.py ENDPOINT, and prints the key of a user who may invoke functions.

Makes the function `m`, which answers one call as a model would. Takes five calls of AWS's; who asks is checked from the
sixth on, if moto was started so.
"""

import io
import json
import sys
import urllib.request
import zipfile

import boto3

endpoint = sys.argv[1]


def tell(path, document):
    body = json.dumps(document).encode()
    headers = {"content-type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(endpoint + path, body, headers)).read()


def client(name):
    keys = {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
    return boto3.client(name, endpoint_url=endpoint, region_name="us-east-1", **keys)


output = {"name": "sum", "datatype": "FP64", "shape": [1], "data": [6.5]}
answer = json.dumps({"model_name": "m", "outputs": [output]})
tell("/moto-api/config", {"lambda": {"use_docker": False}})
tell("/moto-api/static/lambda-simple/response", {"results": [answer]})

code = io.BytesIO()
with zipfile.ZipFile(code, "w") as archive:
    archive.writestr("function.py", "def handler(event, context): return None")

iam = client("iam")
trust = {"Version": "2012-10-17", "Statement": []}
role = iam.create_role(RoleName="r", AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
iam.create_user(UserName="invoker")
allowed = {"Effect": "Allow", "Action": "lambda:Invoke*", "Resource": "*"}
policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
iam.put_user_policy(UserName="invoker", PolicyName="invoke", PolicyDocument=policy)
key = iam.create_access_key(UserName="invoker")["AccessKey"]
client("lambda").create_function(
    FunctionName="m", Runtime="python3.11", Role=role, Handler="function.handler", Code={"ZipFile": code.getvalue()}
)
print(json.dumps({"id": key["AccessKeyId"], "secret": key["SecretAccessKey"]}))
