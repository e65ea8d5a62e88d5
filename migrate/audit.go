package migrate

import (
	"context"
	"strings"

	"claviger"
	"claviger/audit"
)

// auditBegin records the attempt, if the audit demands a record before the attempt.
func (e *Engine) auditBegin(ctx context.Context, key string) error {
	guard, ok := e.cfg.Audit.(audit.Guard)
	if !ok {
		return nil
	}
	return guard.Begin(ctx, audit.Event{Op: audit.MigrateKey, Key: key, Caller: e.cfg.Caller,
		Provider: e.cfg.Target.URI()})
}

// auditEnd records the result, even after ctx has ended.
func (e *Engine) auditEnd(ctx context.Context, key string, versions []string, err error) {
	if e.cfg.Audit == nil {
		return
	}
	event := audit.Event{Status: audit.OK, Op: audit.MigrateKey, Key: key, Caller: e.cfg.Caller,
		Provider: e.cfg.Target.URI()}
	if err != nil {
		event.Status, event.Message = audit.Error, claviger.Reason(err)
	} else {
		for _, v := range versions {
			event.Version = v
		}
		event.Message = "Source:" + e.cfg.Source.URI() + " Versions:" +
			claviger.Escape(strings.Join(versions, ","), "") // a line end in a key's name would end the line of the log
	}
	e.cfg.Audit.Log(context.WithoutCancel(ctx), event)
}
