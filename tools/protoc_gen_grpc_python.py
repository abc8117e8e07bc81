"""protoc plugin: gRPC classes and their type stubs, for those files that declare services.

grpcio-tools carries the grpc_python generator only inside its own protoc, and both
generators would write an empty module beside every file of plain messages.
"""

import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.compiler import plugin_pb2
from grpc_tools import protoc


def generate(request: plugin_pb2.CodeGeneratorRequest) -> plugin_pb2.CodeGeneratorResponse:
    """Returns `*_pb2_grpc.py` and `*_pb2_grpc.pyi` of the requested files that declare services."""
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    requested = set(request.file_to_generate)
    names = [file.name for file in request.proto_file if file.name in requested and file.service]
    if not names:
        return response
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory, "image.binpb")
        image.write_bytes(descriptor_pb2.FileDescriptorSet(file=request.proto_file).SerializeToString())
        output = Path(directory, "output")
        output.mkdir()
        # Not abstract, as at run time: a method left out answers UNIMPLEMENTED.
        stubs = f"--mypy_grpc_out=quiet,generate_concrete_servicer_stubs:{output}"
        arguments = [f"--grpc_python_out={output}", stubs]
        if protoc.main(["protoc", f"--descriptor_set_in={image}", *arguments, *names]):
            response.error = "protoc failed, see above"
        for path in sorted(output.rglob("*.py*")):
            response.file.add(name=path.relative_to(output).as_posix(), content=path.read_text())
    return response


if __name__ == "__main__":
    asked = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    sys.stdout.buffer.write(generate(asked).SerializeToString())
