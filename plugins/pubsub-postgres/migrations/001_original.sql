-- The original system's schema. A database that has it already is left as it is.
CREATE TABLE IF NOT EXISTS cloud.instance_info (
    ip character varying NOT NULL,
    location character varying NOT NULL,
    aws_ami_id character varying NOT NULL,
    aws_instance_type character varying NOT NULL,
    cloud_provider_id character varying NOT NULL,
    commit_hash character varying NOT NULL,
    creation_time_utc_unix_ms bigint NOT NULL,
    gpu_vram_remaining_kb bigint NOT NULL,
    instance_name character varying NOT NULL PRIMARY KEY,
    last_updated_utc_unix_ms bigint NOT NULL,
    mandelbox_capacity bigint NOT NULL,
    memory_remaining_kb bigint NOT NULL,
    nanocpus_remaining bigint NOT NULL,
    status character varying NOT NULL
);

CREATE TABLE IF NOT EXISTS cloud.mandelbox_info (
    mandelbox_id character varying NOT NULL PRIMARY KEY,
    user_id character varying NOT NULL,
    instance_name character varying NOT NULL
        REFERENCES cloud.instance_info (instance_name) ON UPDATE CASCADE ON DELETE CASCADE,
    status character varying NOT NULL,
    creation_time_utc_unix_ms bigint NOT NULL,
    session_id character varying NOT NULL
);
