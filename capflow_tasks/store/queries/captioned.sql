-- Captioned samples of annotation files, over all runs, as index ranges: whole batches where every sample has
-- its caption (most of them, and eight times fewer than samples), and the single samples of all other batches.
WITH file_batches AS NOT MATERIALIZED (
    SELECT shards.annotation, batches.id, batches.start_idx, batches.end_idx,
           -- Finished behind the summarize stage, with all samples. Never NULL, so that NOT finds the rest.
           batches.state = 'done'
               AND batches.done_count = batches.end_idx - batches.start_idx
               AND coalesce(batches.next_stage = 'score', true)
               AND 'summarize' = ANY(runs.stages) AS is_captioned
    FROM batches
    JOIN shards ON shards.id = batches.shard_id
    -- What a run has set aside is captioned, too.
    JOIN runs ON runs.id = coalesce(shards.run_id, shards.set_aside_by)
    WHERE shards.annotation = ANY(:annotations)
)
SELECT annotation, start_idx, end_idx
FROM file_batches
WHERE is_captioned
UNION ALL
SELECT file_batches.annotation, samples.idx, samples.idx + 1
FROM file_batches
JOIN samples ON samples.batch_id = file_batches.id
WHERE NOT is_captioned
  AND samples.state = 'done'
  AND EXISTS (SELECT FROM results WHERE sample_id = samples.id AND stage = 'summarize')
ORDER BY start_idx
