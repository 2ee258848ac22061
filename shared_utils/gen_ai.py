"""Names of OpenTelemetry's GenAI semantic conventions that the scripts use."""


class GenAI:
    """Names from OpenTelemetry's GenAI semantic conventions (open-telemetry/semantic-conventions-genai)."""

    OPERATION_NAME = "gen_ai.operation.name"  # chat, generate_content, text_completion
    PROVIDER_NAME = "gen_ai.provider.name"  # took the place of gen_ai.system
    OUTPUT_TYPE = "gen_ai.output.type"  # text, image, speech, json
    REQUEST_MODEL = "gen_ai.request.model"
    REQUEST_TEMPERATURE = "gen_ai.request.temperature"
    REQUEST_TOP_P = "gen_ai.request.top_p"
    REQUEST_TOP_K = "gen_ai.request.top_k"
    REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
    REQUEST_SEED = "gen_ai.request.seed"
    RESPONSE_MODEL = "gen_ai.response.model"
    RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
    USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
    USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
    TOKEN_TYPE = "gen_ai.token.type"  # input, output
    TOKEN_USAGE = "gen_ai.client.token.usage"  # histogram, {token}
    OPERATION_DURATION = "gen_ai.client.operation.duration"  # histogram, s
