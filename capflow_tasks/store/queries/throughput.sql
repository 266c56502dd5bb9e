-- Samples finished and tokens stored in the last seconds. Reads the batches, and the results of the latest.
WITH run_batches AS NOT MATERIALIZED (
    SELECT * FROM batches WHERE shard_id IN (SELECT id FROM shards WHERE run_id = :run_id)
)
SELECT (
           SELECT coalesce(sum(done_count + failed_count + held_count), 0)::bigint
           FROM run_batches
           WHERE state = 'done' AND finished_at > now() - make_interval(secs => :seconds)
       ) AS samples,
       coalesce(
           extract(epoch FROM now() - greatest(
               now() - make_interval(secs => :seconds),
               min(results.created_at - make_interval(secs => results.seconds))
           )),
           :seconds
       )::float8 AS seconds,
       coalesce(sum(results.prompt_tokens), 0)::bigint AS prompt,
       coalesce(sum(results.cached_tokens), 0)::bigint AS cached,
       coalesce(sum(results.completion_tokens), 0)::bigint AS completion
FROM results
JOIN samples ON samples.id = results.sample_id
WHERE samples.batch_id IN (
    SELECT id FROM run_batches
    WHERE state <> 'done' OR finished_at > now() - make_interval(secs => :seconds)
) AND results.created_at > now() - make_interval(secs => :seconds)
