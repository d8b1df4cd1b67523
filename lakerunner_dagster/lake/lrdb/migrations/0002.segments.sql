-- The segment index, a contract: Lakerunner's query API reads the columns before the line "ours".
-- depends: 0001.profiles

CREATE TABLE log_seg (
    organization_id  UUID NOT NULL,
    dateint          INT NOT NULL,
    segment_id       BIGINT NOT NULL,
    instance_num     SMALLINT NOT NULL,
    ts_range         INT8RANGE NOT NULL,
    record_count     BIGINT NOT NULL,
    file_size        BIGINT NOT NULL,
    ingest_dateint   INT NOT NULL DEFAULT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')::int,
    published        BOOLEAN NOT NULL,
    compacted        BOOLEAN NOT NULL DEFAULT false,
    created_by       SMALLINT NOT NULL,
    created_at       TIMESTAMPTZ NOT NULL DEFAULT now(),
    fingerprints     BIGINT[] NOT NULL DEFAULT '{}',
    sort_version     SMALLINT NOT NULL DEFAULT 2,
    label_name_map   JSONB,
    stream_ids       TEXT[],
    stream_id_field  TEXT,
    agg_fields       TEXT[],
    -- ours
    records          BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (organization_id, dateint, segment_id, instance_num),
    CONSTRAINT log_seg_id_is_positive CHECK (segment_id > 0),
    CONSTRAINT log_seg_range_is_finite
        CHECK (NOT isempty(ts_range) AND NOT lower_inf(ts_range) AND NOT upper_inf(ts_range)),
    CONSTRAINT log_seg_range_lies_in_its_day
        CHECK (lower(ts_range) / 86400000 = make_date(dateint / 10000, dateint / 100 % 100, dateint % 100) - DATE '1970-01-01'
               AND (upper(ts_range) - 1) / 86400000 = lower(ts_range) / 86400000),
    CONSTRAINT log_seg_is_not_empty CHECK (record_count > 0 AND file_size > 0 AND records >= 0),
    CONSTRAINT log_seg_ingest_dateint_is_positive CHECK (ingest_dateint > 0),
    CONSTRAINT log_seg_created_by_a_stage CHECK (created_by IN (1, 2, 3)),
    CONSTRAINT log_seg_stream_ids_have_a_field CHECK ((stream_ids IS NULL) = (stream_id_field IS NULL))
) PARTITION BY LIST (organization_id);

CREATE INDEX log_seg_ts_range ON log_seg USING gist (ts_range);
CREATE INDEX log_seg_fingerprints ON log_seg USING gin (fingerprints);
CREATE INDEX log_seg_labels ON log_seg USING gin (label_name_map);
CREATE INDEX log_seg_streams ON log_seg USING gin (stream_ids);
CREATE INDEX log_seg_published ON log_seg (organization_id, dateint, instance_num) INCLUDE (segment_id) WHERE published;

CREATE TABLE metric_seg (
    organization_id  UUID NOT NULL,
    dateint          INT NOT NULL,
    frequency_ms     INT NOT NULL,
    segment_id       BIGINT NOT NULL,
    instance_num     SMALLINT NOT NULL,
    ts_range         INT8RANGE NOT NULL,
    record_count     BIGINT NOT NULL,
    file_size        BIGINT NOT NULL,
    ingest_dateint   INT NOT NULL DEFAULT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')::int,
    published        BOOLEAN NOT NULL,
    compacted        BOOLEAN NOT NULL DEFAULT false,
    rolledup         BOOLEAN NOT NULL DEFAULT false,
    created_by       SMALLINT NOT NULL,
    created_at       TIMESTAMPTZ NOT NULL DEFAULT now(),
    fingerprints     BIGINT[] NOT NULL DEFAULT '{}',
    sort_version     SMALLINT NOT NULL DEFAULT 3,
    label_name_map   JSONB,
    metric_names     TEXT[],
    metric_types     SMALLINT[],
    -- ours: records counts the points that the rows stand for, rollup_count is the sum of chq_rollup_count
    records          BIGINT NOT NULL DEFAULT 0,
    rollup_count     DOUBLE PRECISION NOT NULL DEFAULT 0,
    PRIMARY KEY (organization_id, dateint, frequency_ms, segment_id, instance_num),
    CONSTRAINT metric_seg_id_is_positive CHECK (segment_id > 0),
    CONSTRAINT metric_seg_frequency_is_positive CHECK (frequency_ms > 0),
    CONSTRAINT metric_seg_range_is_finite
        CHECK (NOT isempty(ts_range) AND NOT lower_inf(ts_range) AND NOT upper_inf(ts_range)),
    CONSTRAINT metric_seg_range_lies_in_its_day
        CHECK (lower(ts_range) / 86400000 = make_date(dateint / 10000, dateint / 100 % 100, dateint % 100) - DATE '1970-01-01'
               AND (upper(ts_range) - 1) / 86400000 = lower(ts_range) / 86400000),
    CONSTRAINT metric_seg_is_not_empty CHECK (record_count > 0 AND file_size > 0 AND records >= 0),
    CONSTRAINT metric_seg_ingest_dateint_is_positive CHECK (ingest_dateint > 0),
    CONSTRAINT metric_seg_created_by_a_stage CHECK (created_by IN (1, 2, 3)),
    CONSTRAINT metric_seg_types_go_with_names
        CHECK (coalesce(cardinality(metric_names), 0) = coalesce(cardinality(metric_types), 0))
) PARTITION BY LIST (organization_id);

CREATE INDEX metric_seg_ts_range ON metric_seg USING gist (ts_range);
CREATE INDEX metric_seg_fingerprints ON metric_seg USING gin (fingerprints);
CREATE INDEX metric_seg_labels ON metric_seg USING gin (label_name_map);
CREATE INDEX metric_seg_names ON metric_seg USING gin (metric_names);
CREATE INDEX metric_seg_published ON metric_seg (organization_id, dateint, frequency_ms)
    INCLUDE (instance_num, segment_id, published) WHERE published;

CREATE TABLE trace_seg (
    organization_id  UUID NOT NULL,
    dateint          INT NOT NULL,
    segment_id       BIGINT NOT NULL,
    instance_num     SMALLINT NOT NULL,
    ts_range         INT8RANGE NOT NULL,
    record_count     BIGINT NOT NULL,
    file_size        BIGINT NOT NULL,
    ingest_dateint   INT NOT NULL DEFAULT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')::int,
    published        BOOLEAN NOT NULL,
    compacted        BOOLEAN NOT NULL DEFAULT false,
    created_by       SMALLINT NOT NULL,
    created_at       TIMESTAMPTZ NOT NULL DEFAULT now(),
    fingerprints     BIGINT[] NOT NULL DEFAULT '{}',
    label_name_map   JSONB,
    -- ours
    records          BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (organization_id, dateint, segment_id, instance_num),
    CONSTRAINT trace_seg_id_is_positive CHECK (segment_id > 0),
    CONSTRAINT trace_seg_range_is_finite
        CHECK (NOT isempty(ts_range) AND NOT lower_inf(ts_range) AND NOT upper_inf(ts_range)),
    CONSTRAINT trace_seg_range_lies_in_its_day
        CHECK (lower(ts_range) / 86400000 = make_date(dateint / 10000, dateint / 100 % 100, dateint % 100) - DATE '1970-01-01'
               AND (upper(ts_range) - 1) / 86400000 = lower(ts_range) / 86400000),
    CONSTRAINT trace_seg_is_not_empty CHECK (record_count > 0 AND file_size > 0 AND records >= 0),
    CONSTRAINT trace_seg_ingest_dateint_is_positive CHECK (ingest_dateint > 0),
    CONSTRAINT trace_seg_created_by_a_stage CHECK (created_by IN (1, 2, 3))
) PARTITION BY LIST (organization_id);

CREATE INDEX trace_seg_ts_range ON trace_seg USING gist (ts_range);
CREATE INDEX trace_seg_fingerprints ON trace_seg USING gin (fingerprints);
CREATE INDEX trace_seg_labels ON trace_seg USING gin (label_name_map);
CREATE INDEX trace_seg_published ON trace_seg (organization_id, dateint, instance_num) INCLUDE (segment_id) WHERE published;
