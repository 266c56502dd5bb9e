-- What the samples that finished last took, by domain, stage, model and worker. Reads their results only.
WITH latest AS (
    SELECT id
    FROM batches
    WHERE shard_id IN (SELECT id FROM shards WHERE run_id = :run_id) AND state = 'done' AND done_count > 0
    ORDER BY finished_at DESC
    LIMIT :batches
), answered AS (
    SELECT samples.domain, results.*, tstzrange(created_at - make_interval(secs => seconds), created_at, '[]') AS span
    FROM results
    JOIN samples ON samples.id = results.sample_id
    WHERE samples.batch_id IN (SELECT id FROM latest) AND samples.state = 'done'
      AND results.model <> :text_reader  -- it takes no tokens, and no GPU
), worked AS (
    SELECT model, worker, sum(extract(epoch FROM upper(span) - lower(span)))::float8 AS worked_seconds
    FROM (SELECT model, worker, unnest(range_agg(span)) AS span FROM answered GROUP BY model, worker) AS spans
    GROUP BY model, worker
), fleet AS (
    -- Pauses, in which no worker waited for an answer, are left out.
    SELECT sum(extract(epoch FROM upper(span) - lower(span)))::float8 AS fleet_seconds
    FROM (SELECT unnest(range_agg(span)) AS span FROM answered) AS spans
), counted AS (
    SELECT domain, count(DISTINCT sample_id) AS samples
    FROM answered
    GROUP BY domain
)
SELECT counted.samples, fleet_seconds, domain, stage, model, worker, worked_seconds,
       count(*) AS answers,
       sum(prompt_tokens)::bigint AS prompt,
       sum(cached_tokens)::bigint AS cached,
       sum(completion_tokens)::bigint AS completion,
       sum(seconds)::float8 AS seconds,
       min(lower(span)) AS began_at,
       max(created_at) AS ended_at,
       (SELECT gpus FROM worker_gpus WHERE owner = worker) AS gpus
FROM answered
JOIN worked USING (model, worker)
JOIN counted USING (domain)
CROSS JOIN fleet
GROUP BY counted.samples, fleet_seconds, domain, stage, model, worker, worked_seconds
ORDER BY domain, stage, model, worker
