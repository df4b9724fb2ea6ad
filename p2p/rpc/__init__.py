"""The control plane's gRPC side: values to protobuf and back, channels, and who may call."""
