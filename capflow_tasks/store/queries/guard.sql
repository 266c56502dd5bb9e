-- Answers that broke a rule of the guard, by agent, worst rule and outcome, with the tokens of the refused ones.
-- Reads all results of the run.
WITH found AS (
    SELECT split_part(results.agent, '@', 1) AS agent,  -- without the window
           results.text = '' AS is_left_out,
           results.guard -> 'repairs' AS repairs,
           results.guard -> 'attempts' AS attempts
    FROM results
    JOIN samples ON samples.id = results.sample_id
    WHERE samples.shard_id IN (SELECT id FROM shards WHERE run_id = :run_id)
      AND results.guard IS NOT NULL
)
SELECT agent, rule, outcome, count(*) AS answers,
       sum(prompt)::bigint AS prompt, sum(cached)::bigint AS cached, sum(completion)::bigint AS completion
FROM (
    SELECT agent, rule, 'repaired' AS outcome, 0::bigint AS prompt, 0::bigint AS cached, 0::bigint AS completion
    FROM found
    CROSS JOIN json_object_keys(repairs) AS rule
    UNION ALL
    SELECT agent,
           -- JSON keeps the order of its keys, and the worst rule is the first.
           (SELECT json_object_keys(attempt -> 'faults') LIMIT 1),
           CASE WHEN is_left_out AND number = json_array_length(attempts) THEN 'left_out' ELSE 'asked_again' END,
           (attempt ->> 'prompt_tokens')::bigint,
           (attempt ->> 'cached_tokens')::bigint,
           (attempt ->> 'completion_tokens')::bigint
    FROM found
    CROSS JOIN json_array_elements(attempts) WITH ORDINALITY AS refused(attempt, number)
    UNION ALL
    SELECT split_part(agent, '@', 1), rule, outcome, prompt_tokens, cached_tokens, completion_tokens
    FROM refused_answers
    JOIN samples ON samples.id = refused_answers.sample_id
    WHERE samples.shard_id IN (SELECT id FROM shards WHERE run_id = :run_id) AND rule IS NOT NULL
) AS answers
GROUP BY agent, rule, outcome
ORDER BY count(*) DESC, agent, rule, outcome
