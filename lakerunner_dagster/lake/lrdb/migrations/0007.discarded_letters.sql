-- Dead letters that a person has discarded: when, who and why. They wait no more, however often they come again.
-- depends: 0006.rollup

ALTER TABLE dead_letters
    ADD COLUMN discarded_at       TIMESTAMPTZ,
    ADD COLUMN discarded_by       TEXT,
    ADD COLUMN discarded_because  TEXT,
    ADD CONSTRAINT a_discard_says_who_and_why
        CHECK (num_nulls(discarded_at, discarded_by, discarded_because) IN (0, 3));

DROP INDEX dead_letters_waiting;
CREATE INDEX dead_letters_waiting ON dead_letters (dead_letter_id)
    WHERE replayed_at IS NULL AND discarded_at IS NULL;
