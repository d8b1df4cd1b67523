-- Compaction: the hours that it still has to look at.
-- depends: 0003.work

-- Whoever publishes a segment writes its hour here in the same transaction, so none is forgotten whatever Kafka loses.
-- The row goes when the hour is settled: cold, and nothing in it will ever be merged unless a new segment comes.
CREATE TABLE unsettled_hours (
    organization_id  UUID NOT NULL,
    instance_num     SMALLINT NOT NULL,
    signal           TEXT NOT NULL,
    frequency_ms     INT NOT NULL,
    dateint          INT NOT NULL,
    hour             SMALLINT NOT NULL,
    look_at          TIMESTAMPTZ NOT NULL DEFAULT now(),
    box_id           BIGINT REFERENCES boxes (box_id),
    PRIMARY KEY (organization_id, instance_num, signal, frequency_ms, dateint, hour),
    FOREIGN KEY (organization_id, instance_num) REFERENCES organization_buckets (organization_id, instance_num),
    CONSTRAINT unsettled_signal_is_known CHECK (signal IN ('logs', 'metrics', 'traces')),
    CONSTRAINT unsettled_hour_is_of_a_day CHECK (hour BETWEEN 0 AND 23)
);

CREATE INDEX unsettled_hours_due ON unsettled_hours (signal, look_at) WHERE box_id IS NULL;
CREATE UNIQUE INDEX unsettled_hours_box ON unsettled_hours (box_id) WHERE box_id IS NOT NULL;

-- What is published already has not been looked at either.
INSERT INTO unsettled_hours (organization_id, instance_num, signal, frequency_ms, dateint, hour)
SELECT organization_id, instance_num, 'logs', 0, dateint, lower(ts_range) / 3600000 % 24 FROM log_seg WHERE published
UNION
SELECT organization_id, instance_num, 'metrics', frequency_ms, dateint, lower(ts_range) / 3600000 % 24
FROM metric_seg WHERE published
UNION
SELECT organization_id, instance_num, 'traces', 0, dateint, lower(ts_range) / 3600000 % 24
FROM trace_seg WHERE published;

CREATE INDEX ledger_compactions ON ledger (organization_id, signal, committed_at) WHERE operation = 'compact';
