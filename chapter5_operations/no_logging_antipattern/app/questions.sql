-- What an operator asks, about two tables: `requests` and `outcomes`. Each query is a question, and no
-- row means that there is no such thing.

-- name: failed
-- How many requests were there, and how many of them failed?
SELECT count(*) AS requests, count(*) FILTER (status >= 400) AS failed,
  round(failed / count(*), 4) AS share
FROM requests;

-- name: p99_step
-- Since which minute is the 99th percentile at least twice as high, for ten minutes against ten?
WITH minutes AS (
  SELECT date_trunc('minute', moment) AS minute, quantile_cont(ms, 0.99) AS p99 FROM requests GROUP BY minute
), steps AS (
  SELECT minute, avg(p99) OVER earlier AS before_ms, avg(p99) OVER later AS after_ms,
    count(*) OVER earlier AS minutes_before, count(*) OVER later AS minutes_after
  FROM minutes
  WINDOW earlier AS (ORDER BY minute ROWS BETWEEN 10 PRECEDING AND 1 PRECEDING),
    later AS (ORDER BY minute ROWS BETWEEN CURRENT ROW AND 9 FOLLOWING)
)
SELECT minute AS since, round(before_ms, 1) AS before_ms, round(after_ms, 1) AS after_ms FROM steps
WHERE minutes_before = 10 AND minutes_after = 10 AND after_ms >= 2 * before_ms
ORDER BY after_ms / before_ms DESC LIMIT 1;

-- name: other_unit
-- Which caller sends values in another unit? Their first feature is below any flower's.
WITH firsts AS (
  SELECT caller, id, moment, unnest("rows")[1] AS first FROM requests
)
SELECT caller, min(moment) AS since, max(moment) AS until, count(DISTINCT id) AS requests FROM firsts
WHERE first < 0.6 * (SELECT median(first) FROM firsts)
GROUP BY caller HAVING requests >= 10 ORDER BY caller;

-- name: class_gone
-- Which class has not been answered for ten minutes, and when was the last time?
WITH answered AS (SELECT unnest(labels) AS label, moment FROM requests)
SELECT label, max(moment) AS last FROM answered
GROUP BY label HAVING last < (SELECT max(moment) FROM answered) - INTERVAL 10 MINUTE ORDER BY label;

-- name: models
-- Which replica has answered with which model, and when?
SELECT replica, model, min(moment) AS since, max(moment) AS until, count(*) AS requests
FROM requests WHERE model IS NOT NULL GROUP BY replica, model ORDER BY replica, model;

-- name: job
-- What was answered to a job, from which input? Without an ID: to the last one.
SELECT id, moment AS "at", caller, replica, model, status, "rows", labels FROM requests
WHERE id = coalesce($job, (SELECT max_by(id, moment) FROM requests));

-- name: repeats
-- Who sends the same rows five times in a minute or more?
WITH same AS (
  SELECT caller, min(moment) AS since, max(moment) AS until, count(*) AS times FROM requests
  WHERE "rows" IS NOT NULL GROUP BY caller, "rows", date_trunc('minute', moment) HAVING times >= 5
)
SELECT caller, min(since) AS since, max(until) AS until, sum(times)::BIGINT AS requests
FROM same GROUP BY caller ORDER BY caller;

-- name: burst
-- When did the server fail most, in minutes with a fifth of errors or more?
WITH bad AS (
  SELECT date_trunc('minute', moment) AS minute FROM requests
  GROUP BY minute HAVING avg((status >= 500)::INT) >= 0.2
)
SELECT min(moment) AS since, max(moment) AS until, count(*) AS failed FROM requests
WHERE status >= 500 AND date_trunc('minute', moment) IN (FROM bad) HAVING failed > 0;

-- name: accuracy
-- How often was each model right, where the outcome is known?
WITH pairs AS (
  SELECT model, unnest(requests.labels) AS said, unnest(outcomes.labels) AS was
  FROM requests JOIN outcomes USING (id) WHERE requests.labels IS NOT NULL
)
SELECT model, count(*) AS outcomes, round(avg((said = was)::INT), 4) AS accuracy
FROM pairs GROUP BY model ORDER BY model;

-- name: to_correct
-- Which answers have to be taken back: to another unit, or by a model other than the usual one?
WITH others AS (
  SELECT DISTINCT id FROM (SELECT id, unnest("rows")[1] AS first FROM requests)
  WHERE first < 0.6 * (SELECT median(first) FROM (SELECT unnest("rows")[1] AS first FROM requests))
)
SELECT caller, count(*) AS answers, list(id ORDER BY id) AS ids FROM requests
WHERE labels IS NOT NULL AND (
  model <> (SELECT mode(model) FROM requests) OR id IN (FROM others)
)
GROUP BY caller ORDER BY caller;
