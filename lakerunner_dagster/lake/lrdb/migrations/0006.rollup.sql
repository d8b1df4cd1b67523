-- Rollup: the slots of each tier that lack something of the finer tier.
-- depends: 0005.compaction

-- Whoever changes what is published of a tier writes the slots of the next tier here, in the same transaction: so no
-- slot is forgotten whatever Kafka loses. The row goes when the slot was computed from all that is published.
CREATE TABLE dirty_slots (
    organization_id  UUID NOT NULL,
    instance_num     SMALLINT NOT NULL,
    frequency_ms     INT NOT NULL,
    slot_ms          BIGINT NOT NULL,
    dirty_at         TIMESTAMPTZ NOT NULL DEFAULT now(),
    box_id           BIGINT REFERENCES boxes (box_id),
    PRIMARY KEY (organization_id, instance_num, frequency_ms, slot_ms),
    FOREIGN KEY (organization_id, instance_num) REFERENCES organization_buckets (organization_id, instance_num),
    CONSTRAINT slot_is_of_a_tier CHECK (frequency_ms > 0 AND slot_ms % frequency_ms = 0)
);

CREATE INDEX dirty_slots_due ON dirty_slots (frequency_ms, dirty_at) WHERE box_id IS NULL;
CREATE INDEX dirty_slots_box ON dirty_slots (box_id) WHERE box_id IS NOT NULL;

-- The tier that a box of rollup or compaction is for; 0 where the stage has none.
ALTER TABLE boxes ADD COLUMN frequency_ms INT NOT NULL DEFAULT 0;

-- Rows of a rollup of cumulative series are increments: the earliest ms of the finer rows that they depend on, where
-- that is before the segment's own. What comes in later from there on makes them wrong.
ALTER TABLE metric_seg ADD COLUMN reach_ms BIGINT;
CREATE INDEX metric_seg_reach ON metric_seg (organization_id, instance_num, frequency_ms, reach_ms)
    WHERE published AND reach_ms IS NOT NULL;

CREATE INDEX ledger_rollups ON ledger (organization_id, frequency_ms, committed_at) WHERE operation = 'rollup';

-- What is published already was never rolled up. Coarser tiers follow as their finer ones are computed.
INSERT INTO dirty_slots (organization_id, instance_num, frequency_ms, slot_ms)
SELECT DISTINCT organization_id, instance_num, 60000, slot
FROM metric_seg, generate_series(lower(ts_range) / 600000 * 600000, upper(ts_range) - 1, 600000) AS slot
WHERE published AND frequency_ms = 10000;
