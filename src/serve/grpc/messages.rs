//! Messages of `inference.GRPCInferenceService`, as far as they are used here, with upstream's field numbers.
//!
//! They are written out, not generated: then building needs neither `protoc` nor a build script. Fields that clients may send and
//! that mean nothing here are left out; protobuf skips them.

use std::collections::HashMap;

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Empty {}

/// `ServerLiveResponse`, `ServerReadyResponse`, `ModelReadyResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Flag {
    #[prost(bool, tag = "1")]
    pub(super) yes: bool,
}

/// The requests of `ModelReady`, `ModelMetadata`, `ModelConfig` and `ModelStatistics`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelName {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) version: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ServerMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) version: String,
    #[prost(string, repeated, tag = "3")]
    pub(super) extensions: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) versions: Vec<String>,
    #[prost(string, tag = "3")]
    pub(super) platform: String,
    #[prost(message, repeated, tag = "4")]
    pub(super) inputs: Vec<TensorMetadata>,
    #[prost(message, repeated, tag = "5")]
    pub(super) outputs: Vec<TensorMetadata>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) datatype: String,
    #[prost(int64, repeated, tag = "3")]
    pub(super) shape: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct InferRequest {
    #[prost(string, tag = "1")]
    pub(super) model_name: String,
    #[prost(string, tag = "2")]
    pub(super) model_version: String,
    #[prost(string, tag = "3")]
    pub(super) id: String,
    #[prost(map = "string, message", tag = "4")]
    pub(super) parameters: HashMap<String, Parameter>,
    #[prost(message, repeated, tag = "5")]
    pub(super) inputs: Vec<InputTensor>,
    #[prost(message, repeated, tag = "6")]
    pub(super) outputs: Vec<RequestedOutput>,
    #[prost(bytes = "bytes", repeated, tag = "7")]
    pub(super) raw_input_contents: Vec<bytes::Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Parameter {
    #[prost(oneof = "ParameterValue", tags = "2, 5")]
    pub(super) value: Option<ParameterValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum ParameterValue {
    #[prost(int64, tag = "2")]
    Int64(i64),
    #[prost(uint64, tag = "5")]
    Uint64(u64),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct InputTensor {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) datatype: String,
    #[prost(int64, repeated, tag = "3")]
    pub(super) shape: Vec<i64>,
    #[prost(message, optional, tag = "5")]
    pub(super) contents: Option<Contents>,
}

/// `InferTensorContents`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Contents {
    #[prost(uint32, repeated, tag = "4")]
    pub(super) uint: Vec<u32>,
    #[prost(float, repeated, tag = "6")]
    pub(super) fp32: Vec<f32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RequestedOutput {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(map = "string, message", tag = "2")]
    pub(super) parameters: HashMap<String, Parameter>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct InferResponse {
    #[prost(string, tag = "1")]
    pub(super) model_name: String,
    #[prost(string, tag = "2")]
    pub(super) model_version: String,
    #[prost(string, tag = "3")]
    pub(super) id: String,
    #[prost(message, repeated, tag = "5")]
    pub(super) outputs: Vec<TensorMetadata>,
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub(super) raw_output_contents: Vec<bytes::Bytes>,
}

/// `ModelConfigResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Configured {
    #[prost(message, optional, tag = "1")]
    pub(super) config: Option<Config>,
}

/// `ModelConfig`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Config {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) platform: String,
    #[prost(int32, tag = "4")]
    pub(super) max_batch_size: i32,
    #[prost(message, repeated, tag = "5")]
    pub(super) input: Vec<ConfigInput>,
    #[prost(message, repeated, tag = "6")]
    pub(super) output: Vec<ConfigOutput>,
    #[prost(message, optional, tag = "11")]
    pub(super) dynamic_batching: Option<DynamicBatching>,
    #[prost(string, tag = "17")]
    pub(super) backend: String,
}

/// `TYPE_UINT8` and `TYPE_FP32` of `DataType`, `FORMAT_NHWC` of `ModelInput.Format`.
pub(super) const TYPE_UINT8: i32 = 2;
pub(super) const TYPE_FP32: i32 = 11;
pub(super) const FORMAT_NHWC: i32 = 1;

/// `ModelInput`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ConfigInput {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(int32, tag = "2")]
    pub(super) data_type: i32,
    #[prost(int32, tag = "3")]
    pub(super) format: i32,
    #[prost(int64, repeated, tag = "4")]
    pub(super) dims: Vec<i64>,
}

/// `ModelOutput`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ConfigOutput {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(int32, tag = "2")]
    pub(super) data_type: i32,
    #[prost(int64, repeated, tag = "3")]
    pub(super) dims: Vec<i64>,
}

/// `ModelDynamicBatching`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DynamicBatching {
    #[prost(int32, repeated, tag = "1")]
    pub(super) preferred_batch_size: Vec<i32>,
    #[prost(uint64, tag = "2")]
    pub(super) max_queue_delay_microseconds: u64,
}

/// `ModelStatisticsResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Statistics {
    #[prost(message, repeated, tag = "1")]
    pub(super) model_stats: Vec<ModelStatistics>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelStatistics {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) version: String,
    #[prost(uint64, tag = "3")]
    pub(super) last_inference: u64,
    #[prost(uint64, tag = "4")]
    pub(super) inference_count: u64,
    #[prost(uint64, tag = "5")]
    pub(super) execution_count: u64,
    #[prost(message, optional, tag = "6")]
    pub(super) inference_stats: Option<InferStatistics>,
    #[prost(message, repeated, tag = "7")]
    pub(super) batch_stats: Vec<BatchStatistics>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct InferStatistics {
    #[prost(message, optional, tag = "1")]
    pub(super) success: Option<Time>,
    #[prost(message, optional, tag = "2")]
    pub(super) fail: Option<Time>,
    #[prost(message, optional, tag = "3")]
    pub(super) queue: Option<Time>,
    #[prost(message, optional, tag = "4")]
    pub(super) compute_input: Option<Time>,
    #[prost(message, optional, tag = "5")]
    pub(super) compute_infer: Option<Time>,
    #[prost(message, optional, tag = "6")]
    pub(super) compute_output: Option<Time>,
    #[prost(message, optional, tag = "7")]
    pub(super) cache_hit: Option<Time>,
    #[prost(message, optional, tag = "8")]
    pub(super) cache_miss: Option<Time>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct BatchStatistics {
    #[prost(uint64, tag = "1")]
    pub(super) batch_size: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) compute_input: Option<Time>,
    #[prost(message, optional, tag = "3")]
    pub(super) compute_infer: Option<Time>,
    #[prost(message, optional, tag = "4")]
    pub(super) compute_output: Option<Time>,
}

/// `StatisticDuration`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Time {
    #[prost(uint64, tag = "1")]
    pub(super) count: u64,
    #[prost(uint64, tag = "2")]
    pub(super) ns: u64,
}

/// `grpc.health.v1.HealthCheckResponse`: 1 is SERVING, 2 is NOT_SERVING.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Health {
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}
