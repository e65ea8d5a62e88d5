package migrate

import (
	"context"
	"strings"

	"claviger"
	"claviger/audit"
)

// auditBegin has the attempt recorded, where that must be before it is made.
func (e *Engine) auditBegin(ctx context.Context, key string) error {
	guard, ok := e.cfg.Audit.(audit.Guard)
	if !ok {
		return nil
	}
	return guard.Begin(ctx, audit.Event{Op: audit.MigrateKey, Key: key, Caller: e.cfg.Caller,
		Provider: e.cfg.Target.URI()})
}

// auditEnd records what became of it, also when ctx has ended meanwhile.
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
		event.Message = "Source:" + e.cfg.Source.URI() + " Versions:" + strings.Join(versions, ",")
	}
	e.cfg.Audit.Log(context.WithoutCancel(ctx), event)
}
