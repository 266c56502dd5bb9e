-- What was read in pictures, and how far the chosen captions agree with it. Reads all results of the run.
SELECT count(*) FILTER (WHERE results.model = :text_reader AND results.data -> 'error' IS NULL) AS read,
       count(*) FILTER (WHERE results.data -> 'error' IS NOT NULL AND results.model = :text_reader) AS unread,
       coalesce(sum(results.seconds) FILTER (WHERE results.model = :text_reader), 0)::float8 AS seconds,
       coalesce(sum((results.checks ->> 'quotes')::bigint), 0)::bigint AS quotes,
       coalesce(sum((results.checks ->> 'unsupported')::bigint), 0)::bigint AS unsupported,
       coalesce(sum((results.checks ->> 'words')::bigint), 0)::bigint AS words,
       coalesce(sum((results.checks ->> 'covered_words')::bigint), 0)::bigint AS covered_words
FROM results
JOIN samples ON samples.id = results.sample_id
WHERE samples.shard_id IN (SELECT id FROM shards WHERE run_id = :run_id)
  AND (results.stage <> 'summarize' OR results.candidate = samples.candidate)
