-- Storage profiles: who may put what where, and how long it is kept. No secret is ever stored here.

CREATE TABLE organizations (
    id          UUID PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    enabled     BOOLEAN NOT NULL DEFAULT true,
    created_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT organization_name_is_a_slug
        CHECK (name ~ '^[a-z0-9]+([-_.][a-z0-9]+)*$' AND length(name) <= 63)
);

CREATE TABLE bucket_configurations (
    bucket_name     TEXT PRIMARY KEY,
    cloud_provider  TEXT NOT NULL,
    region          TEXT,
    endpoint        TEXT,
    role            TEXT,
    use_path_style  BOOLEAN NOT NULL DEFAULT false,
    created_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT bucket_name_fits CHECK (length(bucket_name) BETWEEN 1 AND 255),
    CONSTRAINT cloud_provider_is_known CHECK (cloud_provider IN ('aws', 'gcp', 'azure', 'file'))
);

-- One row is one source. A collector has one number and one home bucket in its organization, so that readers, who
-- know a segment's organization and instance_num alone, find the bucket of its object.
CREATE TABLE organization_buckets (
    organization_id  UUID NOT NULL REFERENCES organizations (id),
    bucket           TEXT NOT NULL REFERENCES bucket_configurations (bucket_name),
    instance_num     SMALLINT NOT NULL,
    collector_name   TEXT NOT NULL,
    created_at       TIMESTAMPTZ NOT NULL DEFAULT now(),
    UNIQUE (organization_id, bucket, instance_num, collector_name),
    CONSTRAINT one_number_a_collector PRIMARY KEY (organization_id, instance_num),
    CONSTRAINT one_home_a_collector UNIQUE (organization_id, collector_name),
    CONSTRAINT instance_num_is_positive CHECK (instance_num > 0),
    CONSTRAINT collector_name_is_a_path_element
        CHECK (collector_name ~ '^[A-Za-z0-9][A-Za-z0-9._-]*$' AND collector_name NOT LIKE '%...%'
               AND length(collector_name) <= 64)
);

CREATE TABLE bucket_prefix_mappings (
    bucket           TEXT NOT NULL REFERENCES bucket_configurations (bucket_name),
    organization_id  UUID NOT NULL REFERENCES organizations (id),
    path_prefix      TEXT NOT NULL,
    signal           TEXT NOT NULL,
    collector_name   TEXT NOT NULL,
    created_at       TIMESTAMPTZ NOT NULL DEFAULT now(),
    UNIQUE (bucket, path_prefix, signal),
    CONSTRAINT path_prefix_is_not_empty CHECK (path_prefix <> ''),
    CONSTRAINT mapped_signal_is_known CHECK (signal IN ('logs', 'metrics', 'traces'))
);

-- Days of event time; 0 keeps for ever. frequency_ms 0 is the signal's rule, for metrics that of every tier without
-- a rule of its own.
CREATE TABLE retentions (
    organization_id  UUID NOT NULL REFERENCES organizations (id),
    signal           TEXT NOT NULL,
    frequency_ms     INT NOT NULL DEFAULT 0,
    days             INT NOT NULL,
    PRIMARY KEY (organization_id, signal, frequency_ms),
    CONSTRAINT retained_signal_is_known CHECK (signal IN ('logs', 'metrics', 'traces')),
    CONSTRAINT only_metrics_have_tiers CHECK (frequency_ms = 0 OR (signal = 'metrics' AND frequency_ms > 0)),
    CONSTRAINT days_are_not_negative CHECK (days >= 0)
);
