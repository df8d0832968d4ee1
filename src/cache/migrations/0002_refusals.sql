-- By which settings a kernel was refused; null where there is none of that name, whoever asks.
ALTER TABLE negatives ADD COLUMN policy BLOB NULL;
