package org.apache.hadoop.crypto.key.kms.server; // KMSACLs' constructor is for this package

import java.io.BufferedWriter;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.nio.file.StandardCopyOption;
import java.security.PrivilegedExceptionAction;
import java.util.ArrayList;
import java.util.Date;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.crypto.key.KeyProvider;
import org.apache.hadoop.crypto.key.KeyProviderCryptoExtension;
import org.apache.hadoop.security.Groups;
import org.apache.hadoop.security.UserGroupInformation;

/**
 * Writes the decisions of Hadoop's own ACL classes. The folder in the argument has groups.txt
 * (hadoop.user.group.static.mapping.overrides), users.txt (in each line "user" or "user TAB real user"), keys.txt (in
 * each line "key TAB ACL name"), and the rules 0000.xml, 0001.xml, ... One KMSACLs reads these files one after the
 * other, by its own reload. answers.txt gets a line for each file and user: a digit for each operation, and then, for
 * each key, a digit for each request. 1 means allowed.
 */
public final class Matrix {
  /** Keys that only have metadata. Every operation succeeds, so only the rules can refuse a request. */
  static final class Keys extends KeyProvider {
    final Map<String, String> aclNames = new HashMap<>();

    Keys() { super(new Configuration(false)); }

    @Override public KeyVersion getKeyVersion(String version) { return new KeyVersion(version.substring(0, version.lastIndexOf('@')), version, new byte[16]) { }; }
    @Override public List<String> getKeys() { return new ArrayList<>(aclNames.keySet()); }
    @Override public List<KeyVersion> getKeyVersions(String name) { return new ArrayList<>(); }
    @Override public KeyVersion getCurrentKey(String name) { return getKeyVersion(name + "@0"); }
    @Override public Metadata getMetadata(String name) {
      if (!aclNames.containsKey(name)) { return null; }
      Map<String, String> attributes = new HashMap<>();
      String acl = aclNames.get(name);
      if (!acl.isEmpty()) { attributes.put("key.acl.name", acl); }
      return new Metadata("AES/CTR/NoPadding", 128, null, attributes, new Date(0), 1) { };
    }
    @Override public KeyVersion createKey(String name, byte[] material, Options options) { return getKeyVersion(name + "@0"); }
    @Override public void deleteKey(String name) { }
    @Override public KeyVersion rollNewVersion(String name, byte[] material) { return getKeyVersion(name + "@1"); }
    @Override public void flush() { }
  }

  interface KeyRequest { void send() throws Exception; }

  static char decision(UserGroupInformation user, KeyRequest request) throws Exception {
    try {
      user.doAs((PrivilegedExceptionAction<Void>) () -> { request.send(); return null; });
      return '1';
    } catch (org.apache.hadoop.security.authorize.AuthorizationException e) {
      return '0';
    }
  }

  public static void main(String[] args) throws Exception {
    Path dir = Paths.get(args[0]);
    Path live = dir.resolve("live");
    Files.createDirectories(live);
    System.setProperty("kms.config.dir", live.toString());

    Configuration conf = new Configuration(false);
    conf.set("hadoop.security.authentication", "simple");
    conf.set("hadoop.security.group.mapping", "org.apache.hadoop.security.NullGroupsMapping");
    conf.set("hadoop.user.group.static.mapping.overrides", new String(Files.readAllBytes(dir.resolve("groups.txt")), StandardCharsets.UTF_8));
    UserGroupInformation.setConfiguration(conf);
    Groups.getUserToGroupsMappingServiceWithLoadedConfiguration(conf);

    List<UserGroupInformation> users = new ArrayList<>();
    for (String line : Files.readAllLines(dir.resolve("users.txt"), StandardCharsets.UTF_8)) {
      String[] names = line.split("\t", 2);
      users.add(names.length == 1 ? UserGroupInformation.createRemoteUser(names[0])
          : UserGroupInformation.createProxyUser(names[0], UserGroupInformation.createRemoteUser(names[1])));
    }
    Keys keys = new Keys();
    List<String> names = new ArrayList<>();
    for (String line : Files.readAllLines(dir.resolve("keys.txt"), StandardCharsets.UTF_8)) {
      String[] parts = line.split("\t", 2);
      names.add(parts[0]);
      keys.aclNames.put(parts[0], parts[1]);
    }

    // KMSACLs writes a refusal to the audit log of KMSWebApp, which does not run here.
    java.lang.reflect.Field audit = KMSWebApp.class.getDeclaredField("kmsAudit");
    audit.setAccessible(true);
    audit.set(null, new KMSAudit(conf));

    Path file = live.resolve("kms-acls.xml");
    KMSACLs acls = null;
    KeyAuthorizationKeyProvider guarded = null;
    try (BufferedWriter out = Files.newBufferedWriter(dir.resolve("answers.txt"), StandardCharsets.UTF_8)) {
      for (int i = 0; ; i++) {
        Path next = dir.resolve(String.format("%04d.xml", i));
        if (!Files.exists(next)) { break; }
        Files.copy(next, file, StandardCopyOption.REPLACE_EXISTING);
        file.toFile().setLastModified(System.currentTimeMillis() + 60_000);
        if (acls == null) {
          acls = new KMSACLs();
          guarded = new KeyAuthorizationKeyProvider(KeyProviderCryptoExtension.createKeyProviderCryptoExtension(keys), acls);
        } else {
          acls.run(); // like the reloader's thread
        }
        for (UserGroupInformation user : users) {
          out.write(line(acls, guarded, keys, user, names));
          out.newLine();
        }
      }
    }
    System.exit(0); // the threads of the audit log do not end by themselves
  }

  static String line(KMSACLs acls, KeyAuthorizationKeyProvider guarded, Keys keys, UserGroupInformation user, List<String> names) throws Exception {
    StringBuilder b = new StringBuilder();
    for (KMSACLs.Type type : KMSACLs.Type.values()) {
      b.append(acls.hasAccess(type, user) ? '1' : '0');
    }
    for (String name : names) {
      String version = name + "@0";
      b.append(' ');
      b.append(decision(user, () -> guarded.getCurrentKey(name)));
      b.append(decision(user, () -> guarded.getMetadata(name)));
      b.append(decision(user, () -> guarded.rollNewVersion(name)));
      b.append(decision(user, () -> guarded.deleteKey(name)));
      b.append(decision(user, () -> guarded.generateEncryptedKey(name)));
      b.append(decision(user, () -> guarded.decryptEncryptedKey(
          KeyProviderCryptoExtension.EncryptedKeyVersion.createForDecryption(name, version, new byte[16], new byte[16]))));
      KeyProvider.Options options = new KeyProvider.Options(new Configuration(false));
      String acl = keys.aclNames.get(name);
      Map<String, String> attributes = new HashMap<>();
      if (!acl.isEmpty()) { attributes.put("key.acl.name", acl); }
      options.setAttributes(attributes);
      b.append(decision(user, () -> guarded.createKey(name, new byte[16], options)));
    }
    return b.toString();
  }

  private Matrix() { }
}
