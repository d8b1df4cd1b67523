-- Work and its history: raw objects, boxes, lineage, the ledger, supersessions, and the edges to Kafka.
-- depends: 0002.segments

CREATE TABLE boxes (
    box_id           BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organization_id  UUID NOT NULL,
    instance_num     SMALLINT NOT NULL,
    stage            TEXT NOT NULL,
    signal           TEXT NOT NULL,
    dateint          INT NOT NULL,
    grouping_key     TEXT NOT NULL,
    members          INT NOT NULL,
    ingested         INT NOT NULL DEFAULT 0,
    segments         INT NOT NULL DEFAULT 0,
    records          BIGINT NOT NULL DEFAULT 0,
    bytes            BIGINT NOT NULL,
    reason           TEXT NOT NULL,
    state            TEXT NOT NULL DEFAULT 'open',
    attempts         INT NOT NULL DEFAULT 0,
    attempts_allowed INT,
    next_attempt_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
    dispatches       INT NOT NULL DEFAULT 0,
    dispatched_at    TIMESTAMPTZ,
    claimed_at       TIMESTAMPTZ,
    run_id           TEXT,
    lease_token      UUID,
    lease_seconds    DOUBLE PRECISION,
    lease_until      TIMESTAMPTZ,
    error_class      TEXT,
    error_text       TEXT,
    created_at       TIMESTAMPTZ NOT NULL DEFAULT now(),
    ended_at         TIMESTAMPTZ,
    FOREIGN KEY (organization_id, instance_num) REFERENCES organization_buckets (organization_id, instance_num),
    CONSTRAINT box_state_is_known CHECK (state IN ('open', 'claimed', 'done', 'failed')),
    CONSTRAINT box_signal_is_known CHECK (signal IN ('logs', 'metrics', 'traces')),
    CONSTRAINT box_counts_are_not_negative CHECK (ingested BETWEEN 0 AND members AND bytes >= 0 AND attempts >= 0 AND dispatches >= 0),
    CONSTRAINT a_claim_is_a_lease
        CHECK ((state = 'claimed') = (lease_token IS NOT NULL) AND (lease_token IS NULL) = (lease_until IS NULL)
               AND (state <> 'claimed' OR num_nulls(run_id, lease_seconds, attempts_allowed, claimed_at) = 0)),
    CONSTRAINT a_failed_box_says_why CHECK (state <> 'failed' OR (error_class IS NOT NULL AND error_text IS NOT NULL)),
    CONSTRAINT a_box_ends_once CHECK ((state IN ('done', 'failed')) = (ended_at IS NOT NULL))
);

CREATE INDEX boxes_not_done ON boxes (stage, organization_id, instance_num, dateint, box_id) WHERE state <> 'done';
CREATE INDEX boxes_done ON boxes (organization_id, stage, instance_num, ended_at)
    INCLUDE (ingested, segments, records) WHERE state = 'done';

CREATE TABLE raw_objects (
    raw_object_id     BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organization_id   UUID NOT NULL,
    instance_num      SMALLINT NOT NULL,
    collector         TEXT NOT NULL,
    signal            TEXT NOT NULL,
    bucket            TEXT NOT NULL,
    key               TEXT NOT NULL,
    etag              TEXT NOT NULL,
    identity          TEXT NOT NULL,
    size              BIGINT NOT NULL,
    event_time_ms     BIGINT NOT NULL,
    event_dateint     INT NOT NULL,
    adapter           TEXT NOT NULL,
    notified_at       TIMESTAMPTZ NOT NULL DEFAULT now(),
    pending_since     TIMESTAMPTZ NOT NULL DEFAULT now(),
    state             TEXT NOT NULL DEFAULT 'pending',
    box_id            BIGINT REFERENCES boxes (box_id),
    ended_at          TIMESTAMPTZ,
    raw_bytes         BIGINT NOT NULL DEFAULT 0,
    records_read      BIGINT NOT NULL DEFAULT 0,
    records_rejected  BIGINT NOT NULL DEFAULT 0,
    rejected          JSONB NOT NULL DEFAULT '{}',
    error_class       TEXT,
    error_text        TEXT,
    UNIQUE (bucket, key, etag),
    FOREIGN KEY (organization_id, instance_num) REFERENCES organization_buckets (organization_id, instance_num),
    CONSTRAINT raw_signal_is_known CHECK (signal IN ('logs', 'metrics', 'traces')),
    CONSTRAINT raw_state_is_known CHECK (state IN ('pending', 'boxed', 'ingested', 'quarantined', 'missing')),
    CONSTRAINT raw_key_fits CHECK (octet_length(key) BETWEEN 1 AND 1024 AND octet_length(etag) <= 256),
    CONSTRAINT raw_counts_add_up
        CHECK (size >= 0 AND raw_bytes >= 0 AND records_rejected >= 0 AND records_read >= records_rejected),
    CONSTRAINT pending_is_in_no_box CHECK (state <> 'pending' OR box_id IS NULL),
    CONSTRAINT boxed_is_in_a_box CHECK (state <> 'boxed' OR box_id IS NOT NULL),
    CONSTRAINT raw_ends_once CHECK ((state IN ('ingested', 'quarantined', 'missing')) = (ended_at IS NOT NULL)),
    CONSTRAINT set_aside_says_why CHECK (state NOT IN ('quarantined', 'missing') OR error_class IS NOT NULL)
);

-- What work and people look for stays small, however many objects are done.
CREATE INDEX raw_objects_pending ON raw_objects (signal, organization_id, raw_object_id) WHERE state = 'pending';
CREATE INDEX raw_objects_attention ON raw_objects (organization_id, raw_object_id)
    WHERE state IN ('quarantined', 'missing') OR records_rejected > 0;
CREATE INDEX raw_objects_day ON raw_objects (organization_id, instance_num, signal, event_dateint);
CREATE INDEX raw_objects_box ON raw_objects (box_id) WHERE box_id IS NOT NULL;
CREATE INDEX raw_objects_identity ON raw_objects (organization_id, identity);

-- Decompressed by stored bytes, learned from what was ingested.
CREATE TABLE compression_ratios (
    organization_id  UUID NOT NULL,
    instance_num     SMALLINT NOT NULL,
    signal           TEXT NOT NULL,
    ratio            DOUBLE PRECISION NOT NULL,
    updated_at       TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, instance_num, signal),
    CONSTRAINT ratio_is_positive CHECK (ratio > 0)
);

-- Output segment <- raw object or input segment. It outlives the segment.
CREATE TABLE lineage (
    organization_id  UUID NOT NULL,
    instance_num     SMALLINT NOT NULL,
    signal           TEXT NOT NULL,
    frequency_ms     INT NOT NULL,
    dateint          INT NOT NULL,
    hour             SMALLINT NOT NULL,
    segment_id       BIGINT NOT NULL,
    input_kind       TEXT NOT NULL,
    input_id         BIGINT NOT NULL,
    records          BIGINT NOT NULL,
    operation        TEXT NOT NULL,
    run_id           TEXT NOT NULL,
    code_version     TEXT NOT NULL,
    created_at       TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, segment_id, input_kind, input_id),
    CONSTRAINT input_kind_is_known CHECK (input_kind IN ('raw', 'segment')),
    CONSTRAINT contribution_is_not_empty CHECK (records > 0),
    CONSTRAINT hour_is_of_a_day CHECK (hour BETWEEN 0 AND 23)
);

CREATE INDEX lineage_input ON lineage (organization_id, input_kind, input_id);
CREATE INDEX lineage_day ON lineage (organization_id, instance_num, signal, dateint, frequency_ms, hour);

CREATE TABLE ledger (
    ledger_id             BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    committed_at          TIMESTAMPTZ NOT NULL DEFAULT now(),
    run_id                TEXT NOT NULL,
    operation             TEXT NOT NULL,
    code_version          TEXT NOT NULL,
    organization_id       UUID NOT NULL,
    instance_num          SMALLINT NOT NULL,
    signal                TEXT NOT NULL,
    dateint               INT NOT NULL,
    frequency_ms          INT NOT NULL,
    box_id                BIGINT,
    records_read          BIGINT NOT NULL,
    records_written       BIGINT NOT NULL,
    records_rejected      BIGINT NOT NULL,
    rejected              JSONB NOT NULL,
    rows_written          BIGINT NOT NULL,
    records_merged        BIGINT GENERATED ALWAYS AS (records_written - rows_written) STORED,
    rollup_count_read     DOUBLE PRECISION NOT NULL,
    rollup_count_written  DOUBLE PRECISION NOT NULL,
    bytes_in              BIGINT NOT NULL,
    bytes_out             BIGINT NOT NULL,
    seconds               DOUBLE PRECISION NOT NULL,
    peak_memory_bytes     BIGINT NOT NULL,
    CONSTRAINT ledger_conserves_records CHECK (records_read = records_written + records_rejected)
);

-- A box is booked once: the last line of defence against publishing it twice.
CREATE UNIQUE INDEX ledger_box ON ledger (box_id) WHERE box_id IS NOT NULL;
CREATE INDEX ledger_day ON ledger (organization_id, instance_num, signal, dateint, frequency_ms);
CREATE INDEX ledger_run ON ledger (run_id);

-- When a segment was unpublished, and by what: its object is deleted only a grace period after superseded_at.
CREATE TABLE supersessions (
    organization_id  UUID NOT NULL,
    instance_num     SMALLINT NOT NULL,
    signal           TEXT NOT NULL,
    frequency_ms     INT NOT NULL,
    dateint          INT NOT NULL,
    segment_id       BIGINT NOT NULL,
    superseded_at    TIMESTAMPTZ NOT NULL DEFAULT now(),
    operation        TEXT NOT NULL,
    run_id           TEXT NOT NULL,
    replaced_by      BIGINT[] NOT NULL,
    PRIMARY KEY (organization_id, segment_id)
);

CREATE INDEX supersessions_age ON supersessions (organization_id, superseded_at);

-- The body is JSON, not JSONB: it goes out as it was written, keys in their order.
CREATE TABLE outbox (
    outbox_id   BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic       TEXT NOT NULL,
    key         TEXT NOT NULL,
    body        JSON NOT NULL,
    headers     JSON NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE consumed_offsets (
    consumer_group  TEXT NOT NULL,
    cluster_id      TEXT NOT NULL,
    topic           TEXT NOT NULL,
    partition       INT NOT NULL,
    next_offset     BIGINT NOT NULL,
    updated_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer_group, cluster_id, topic, partition),
    CONSTRAINT offset_is_not_negative CHECK (next_offset >= 0 AND partition >= 0)
);

-- What no stage could take. The digest is of what was sent, without the time of sending: sent again, it counts again.
CREATE TABLE dead_letters (
    dead_letter_id  BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest          TEXT NOT NULL UNIQUE,
    topic           TEXT NOT NULL,
    key             TEXT NOT NULL,
    reason          TEXT NOT NULL,
    error_text      TEXT NOT NULL,
    body            JSON NOT NULL,
    adapter         TEXT NOT NULL,
    times           INT NOT NULL DEFAULT 1,
    first_at        TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_at         TIMESTAMPTZ NOT NULL DEFAULT now(),
    replayed_at     TIMESTAMPTZ
);

CREATE INDEX dead_letters_waiting ON dead_letters (dead_letter_id) WHERE replayed_at IS NULL;
