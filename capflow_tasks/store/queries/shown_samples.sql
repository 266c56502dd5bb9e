-- At most so many of a run's samples: first all that failed, then those with the worst overall grade, then the rest. Where
-- one of these groups does not fit, it is thinned out evenly over the run. Reads all samples and scores of the run.
WITH grouped AS (
    SELECT samples.id, samples.shard_id, samples.idx,
           CASE WHEN samples.state = 'failed' THEN 0 WHEN judged.overall = '1' THEN 1 ELSE 2 END AS urgency
    FROM samples
    LEFT JOIN (
        -- The last judge's grade of the chosen caption.
        SELECT DISTINCT ON (results.sample_id) results.sample_id, results.data ->> 'overall' AS overall
        FROM results
        JOIN samples ON samples.id = results.sample_id AND samples.candidate = results.candidate
        WHERE samples.shard_id IN (SELECT id FROM shards WHERE run_id = :run_id)
          AND results.stage = 'score'
          AND json_typeof(results.data) = 'object'
        ORDER BY results.sample_id, results.position DESC, results.agent DESC
    ) AS judged ON judged.sample_id = samples.id
    WHERE samples.shard_id IN (SELECT id FROM shards WHERE run_id = :run_id)
), counted AS (
    SELECT *,
           row_number() OVER (PARTITION BY urgency ORDER BY shard_id, idx) AS place,
           count(*) OVER (PARTITION BY urgency) AS size,
           count(*) OVER (ORDER BY urgency) AS so_far
    FROM grouped
), placed AS (
    -- How many of a group fit, behind those that go before it.
    SELECT *, least(size, greatest(0, :most - (so_far - size))) AS room FROM counted
)
SELECT id
FROM placed
WHERE place * room / size > (place - 1) * room / size
ORDER BY shard_id, idx
