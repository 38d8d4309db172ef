"""A Lambda function for awslambdaric that answers events as models do, or goes wrong as told by the parameter "do"."""

import os
import sys
import time


def handler(event, context):
    match event.get("parameters", {}).get("do", "sum"):
        case "raise":
            raise ValueError("not a digit")
        case "crash":
            print("segmentation fault, nearly", file=sys.stderr, flush=True)
            os._exit(3)
        case "hang":
            time.sleep(600)
        case "rubbish":
            return "rubbish"
        case "too_much":
            return "x" * (7 * 1024 * 1024)
    total = sum(sum(tensor["data"]) for tensor in event["inputs"])
    output = {"name": "sum", "datatype": "FP64", "shape": [1], "data": [total]}
    about = {"remaining_ms": context.get_remaining_time_in_millis(), "arn": context.invoked_function_arn}
    return {"model_name": event["model_name"], "id": event["id"], "outputs": [output], "parameters": about}
